__version__ = "0.1.0"

# Written by hand, but for the version. PyTorch's CPU threads wait for each other, and GNU OpenMP
# lets them spin meanwhile. Beside another busy program that makes training ten to twenty times
# slower (benchmarks/busy.md), so they spin for a short while only, unless the user has said how to
# wait. OpenMP reads this once, when torch is imported.
import os

if 'OMP_WAIT_POLICY' not in os.environ: os.environ.setdefault('GOMP_SPINCOUNT', '20000')
