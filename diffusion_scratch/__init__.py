__version__ = "0.1.0"

# Written by hand, except for the version. The CPU threads of PyTorch wait for each other, and GNU
# OpenMP lets them spin while they wait. If another program is busy, this makes training about 30
# times slower (benchmarks/busy.md). So here they spin only for a short time, unless the user
# has chosen how they wait. OpenMP reads this once, when torch is imported.
import os

if 'OMP_WAIT_POLICY' not in os.environ: os.environ.setdefault('GOMP_SPINCOUNT', '20000')
