"""Inference on any plated Pyro model: densities per block, Markov kernels, EM. Knows no audio."""

from .adapt import TARGET_ACCEPTANCE, StepSizeAdapter, adapt_step_size
from .blocks import BlockError
from .density import LogDensity, Position, log_density
from .discrete import Smoothed, filtered, forward_backward, log_evidence, sample_path
from .em import EStep, Expectation, em, gradient_m_step, guide_e_step, last_draws, mcmc_e_step, point_e_step
from .frame_windows import WindowDensity, Windows, frame_windows, windowed
from .gibbs import Group, gibbs
from .guide_quality import GuideQuality, guide_quality
from .kernels import Info, Kernel, State, hmc, kinetic_langevin, langevin, mala, metropolis
from .per_frame import per_frame_acceptance
from .proposals import guide_draws
from .pyro_mcmc import PyroKernel, nuts
from .receptive_field import ReceptiveField, receptive_field
from .renyi import RenyiBound
from .run import Draws, Proposal, sample
from .slice import elliptical_slice
from .svi import Objective, fit
from .tempering import annealed, parallel_tempering, replicas
from .warmup import Tuned, tuned, warm_up
from .whiten import whitened

__all__ = [
    "TARGET_ACCEPTANCE", "BlockError", "Draws", "EStep", "Expectation", "Group", "GuideQuality", "Info", "Kernel", "LogDensity",
    "Objective", "Position", "Proposal", "PyroKernel", "ReceptiveField", "RenyiBound", "Smoothed", "State", "StepSizeAdapter", "Tuned",
    "WindowDensity", "Windows", "adapt_step_size", "annealed", "elliptical_slice", "em", "filtered", "fit", "forward_backward",
    "frame_windows", "gibbs", "gradient_m_step", "guide_draws", "guide_e_step", "guide_quality", "hmc", "kinetic_langevin", "langevin",
    "last_draws", "log_density", "log_evidence", "mala", "mcmc_e_step", "metropolis", "nuts", "parallel_tempering", "per_frame_acceptance",
    "point_e_step", "receptive_field", "replicas", "sample", "sample_path", "tuned", "warm_up", "whitened", "windowed",
]
