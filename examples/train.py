"""Train a diffusion model: python examples/train.py <PATH_TO_CONFIG> [key=value ...]    (the
same as diffusion-train)"""
from diffusion_scratch.cli import train_command

if __name__ == '__main__': train_command()
