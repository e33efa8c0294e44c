"""Corruptions: how much, where, in how many runs, and what each does."""

import pytest
import torch

from ppse import corruptions
from ppse.corruptions import Corruption, corrupt, stretches
from ppse.lips import Lips

LIPS = Lips.at_rate(torch.rand(75, 88, 88, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.4, 25.0)
OTHER = Lips.at_rate(torch.rand(20, 88, 88, generator=torch.Generator().manual_seed(2)), 25.0)
ALL = [
    corruptions.occluded, corruptions.frozen, corruptions.shuffled, corruptions.noisy, corruptions.dropped, corruptions.swapped(OTHER),
    corruptions.late(6),
]


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_stretches_take_their_share_in_so_many_runs(runs: int) -> None:
    for seed in range(50):
        where = stretches(75, 1 / 3, runs, torch.Generator().manual_seed(seed))
        starts = (where.int().diff(prepend=torch.zeros(1, dtype=torch.int)) == 1).sum()
        assert where.sum() == 25 and starts == runs


def test_all_placements_come_equally_often() -> None:
    """Two runs of one frame among five that do not touch: six placements."""
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([stretches(5, 0.4, 2, generator) for _ in range(3000)]).long() @ (2 ** torch.arange(5))
    _, counts = found.unique(return_counts=True)
    assert len(counts) == 6
    assert ((counts - 500.0) ** 2 / 500).sum() < 20.5  # chi-square with 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize("corruption", ALL)
def test_only_the_stretch_changes_and_the_seed_decides(corruption: Corruption) -> None:
    before = torch.random.get_rng_state()
    lips, where = corrupt(LIPS, corruption, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    changed = (lips.frames != LIPS.frames).flatten(1).any(1)
    assert not changed[~where].any()
    assert changed[where].sum() >= 24  # shuffling may leave a frame in its place
    assert torch.equal(lips.good, LIPS.good) and torch.equal(lips.times, LIPS.times)
    again, same = corrupt(LIPS, corruption, seed=3)
    assert torch.equal(again.frames, lips.frames) and torch.equal(same, where)
    assert not torch.equal(corrupt(LIPS, corruption, seed=4).where, where)


def test_each_does_what_its_name_says() -> None:
    bad = {kind.__name__: corrupt(LIPS, kind, seed=5) for kind in ALL[:5]}
    where = bad["frozen"].where
    first, frames = int(where.nonzero()[0]), LIPS.frames[where]
    assert (bad["frozen"].lips.frames[where] == LIPS.frames[first - 1]).all()
    assert torch.equal(bad["shuffled"].lips.frames[where].sum((1, 2)).sort().values, frames.sum((1, 2)).sort().values)
    assert (bad["dropped"].lips.frames[where] == 0).all()
    patch = bad["occluded"].lips.frames[where] != frames
    assert torch.equal(patch[0], patch[-1]) and patch[0, 44, 44] and 0.2 < patch[0].float().mean() < 0.6
    noise = bad["noisy"].lips.frames[where] - frames
    inside = (bad["noisy"].lips.frames[where] > 0) & (bad["noisy"].lips.frames[where] < 1)
    assert noise[inside].std() == pytest.approx(0.25, abs=0.05)  # 0.3 before it was cut off
    late = corrupt(LIPS, corruptions.late(6), seed=5).lips.frames
    assert first > 6 and torch.equal(late[where], LIPS.frames[where.nonzero().flatten() - 6])
    early = corrupt(LIPS, corruptions.late(-100), seed=5).lips.frames
    assert (early[where] == LIPS.frames[-1]).all()
    wrong = corrupt(LIPS, corruptions.swapped(OTHER), seed=5).lips.frames[where]
    assert all((OTHER.frames == frame).all((1, 2)).any() for frame in wrong)


def test_nothing_and_everything_can_be_corrupted() -> None:
    assert not corrupt(LIPS, corruptions.dropped, share=0).where.any()
    assert corrupt(LIPS, corruptions.frozen, share=1).where.all()


@pytest.mark.parametrize(("share", "runs"), [(1.2, 1), (-0.1, 1), (0.5, 0), (1.0, 2), (0.02, 3)])
def test_impossible_stretches_are_refused(share: float, runs: int) -> None:
    with pytest.raises(ValueError, match="stretches"):
        corrupt(LIPS, corruptions.dropped, share=share, runs=runs)
