# CPU by default. For CUDA: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

RUN apt-get update && apt-get install -y --no-install-recommends git make npm && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --shell /bin/bash diffusion \
 && install -d -o diffusion -g diffusion /home/diffusion/diffusion_scratch
USER diffusion
WORKDIR /home/diffusion/diffusion_scratch
ENV VIRTUAL_ENV=/home/diffusion/venv PATH=/home/diffusion/venv/bin:$PATH

# torch first, in a layer of its own: it is large and seldom changes
RUN python -m venv $VIRTUAL_ENV && pip install --no-cache-dir -U pip setuptools wheel \
 && pip install --no-cache-dir 'torch>=2.9' 'torchvision>=0.24' --index-url $TORCH_INDEX
COPY --chown=diffusion . .
RUN pip install --no-cache-dir -e '.[dev,lab]' \
 && python -m ipykernel install --sys-prefix --name diffusion_scratch --display-name "diffusion_scratch"

EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "nbs"]
