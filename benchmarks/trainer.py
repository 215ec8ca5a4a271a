"""What training costs beside bare steps. Writes benchmarks/trainer.md.

    python benchmarks/trainer.py

A step of `fit`, and a step of a whole run of diffusion-train with metrics.csv, TensorBoard and the progress bar. After each comes
a bare step in the same process: forward, backward and the same fused Adam on a batch that was noised beforehand.
"""
import contextlib
import copy
import io
import itertools
import tempfile
import time
from statistics import median

import torch
from common import HERE, OVERHEADS, collect, measured, overhead_row, quickstart, table, timed

from diffusion_scratch import run as runs
from diffusion_scratch.config import load_config, make_data, make_denoiser, make_fit_options, make_schedule
from diffusion_scratch.noising import q_sample
from diffusion_scratch.training import TrainState, fit
