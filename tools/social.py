"""The first picture of the book, the picture that a link to it shows, and the icons of its site,
drawn by its own networks.

    python tools/social.py    # writes nbs/assets/first.webp, {social,touch-icon,favicon}.png and
                              # favicon.svg

The first picture has digits, objects and faces, without selection. The picture of a link has ten
digits on their way from noise: one walk of `mnist-conditional` with DDIM, looked at four times. The
icon is the last image of one of them.
"""
import base64, io
from pathlib import Path

import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from diffusion_scratch.denoiser import clipped
from diffusion_scratch.guidance import guided
from diffusion_scratch.pretrained import about, load
from diffusion_scratch.sampling import sample, trajectory
from diffusion_scratch.solvers import ddim, dpm_solver_pp

ASSETS = Path(__file__).parent.parent/'nbs'/'assets'
SEED, STEPS, GUIDANCE, ICON = 0, 50, 1., 3
SHOWN = 0, 22, 34, STEPS  # frames of the walk
DIGIT, GAP = 100, 10  # pixels
INK, SOFT, GROUND = '#ffffff', '#aab6cc', '#1c2536'  # the bar above the pages


def digits() -> list[list[Image.Image]]:
    "One row of ten pictures for each frame that is shown"
    denoiser, schedule = load('mnist-conditional')
    denoiser = guided(clipped(denoiser), torch.arange(10), GUIDANCE)
    walk = list(trajectory(denoiser, schedule, (10, 1, 28, 28), step=ddim(),
                           times=schedule.times(STEPS), seed=SEED))
    grey = [((walk[i].x.clamp(-1, 1) + 1) * 127.5).round().byte().numpy() for i in SHOWN]
    return [[Image.fromarray(image[0]) for image in row] for row in grey]


def card(rows: list[list[Image.Image]]) -> Image.Image:
    "The title above the digits"
    picture = Image.new('RGB', (1200, 630), GROUND)
    draw = ImageDraw.Draw(picture)
    left = (1200 - 10*DIGIT - 9*GAP)//2
    lines = [('Diffusion from scratch', 64, 36, INK),
             ('A book of notebooks that are a PyTorch library', 30, 120, SOFT)]
    for words, size, top, ink in lines:
        font = ImageFont.truetype(font_manager.findfont('DejaVu Sans'), size)
        draw.text((left, top), words, ink, font)
    for i, row in enumerate(rows):
        for j, digit in enumerate(row):
            place = left + j*(DIGIT + GAP), 188 + i*(DIGIT + GAP)
            picture.paste(digit.resize((DIGIT, DIGIT), Image.Resampling.NEAREST), place)
    return picture


def three() -> Image.Image:
    "Digits, objects and faces beside each other, each 6 x 4 images of the shipped weights"
    faces = about('faces')['classes']
    asked = {'mnist-conditional': torch.arange(24) % 10, 'cifar10': torch.arange(24) % 10,
             'faces': torch.full((24, len(faces)), -1)}
    panels = []
    for name, y in asked.items():
        (denoiser, schedule), shape = load(name), about(name)['shape']
        x = sample(clipped(guided(denoiser, y, GUIDANCE)), schedule, (24, *shape),
                   step=dpm_solver_pp(), times=schedule.times(20), seed=SEED, progress=False)
        k = 64 // shape[-1]  # whole pixels; digits of 28 get a black frame of 4
        x = x.repeat_interleave(k, 2).repeat_interleave(k, 3).expand(-1, 3, -1, -1)
        edge = (64 - x.shape[-1]) // 2
        x = torch.nn.functional.pad(x, [edge] * 4, value=-1.)
        panels.append(x.view(4, 6, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(256, 384, 3))
    gap = torch.ones(256, 24, 3)
    whole = torch.cat([panels[0], gap, panels[1], gap, panels[2]], 1)
    return Image.fromarray(((whole + 1) * 127.5).round().byte().numpy())


def icon(digit: Image.Image, size: int) -> Image.Image:
    return digit.resize((size, size), Image.Resampling.BICUBIC)


def main():
    three().save(ASSETS/'first.webp', quality=90, method=6)
    rows = digits()
    card(rows).quantize(64).save(ASSETS/'social.png', optimize=True)
    digit = rows[-1][ICON]
    icon(digit, 32).save(ASSETS/'favicon.png', optimize=True)
    icon(digit, 180).quantize(32).save(ASSETS/'touch-icon.png', optimize=True)
    data = io.BytesIO()
    icon(digit, 64).quantize(32).save(data, 'PNG', optimize=True)
    coded = base64.b64encode(data.getvalue()).decode()
    (ASSETS/'favicon.svg').write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64"><clipPath id="round">'
        '<rect width="64" height="64" rx="14"/></clipPath><image width="64" height="64" '
        f'clip-path="url(#round)" href="data:image/png;base64,{coded}"/></svg>\n')


if __name__ == '__main__': main()
