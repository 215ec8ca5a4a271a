"The digits that a page draws in the browser: the same numbers as in Python"
import json, shutil, subprocess
from pathlib import Path

import pytest
import torch
from fastcore.test import test_eq as equal
from torch import nn

from diffusion_scratch.denoiser import Denoiser, V, clipped
from diffusion_scratch.editing import inpaint
from diffusion_scratch.guidance import guided
from diffusion_scratch.noising import q_sample
from diffusion_scratch.sampling import Noise, ancestral, coefficient_table, sample
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun

ROOT = Path(__file__).resolve().parent.parent
SCHEDULE = Schedule(cosine_betas())
SOLVERS = dict(ancestral=ancestral(), ddim=ddim(), dpm_solver_pp=dpm_solver_pp(), heun=heun())
SHAPE = (3, 1, 7, 7)                       # 49 numbers an image: not a multiple of 16
LABELS = torch.tensor([4, -1, 9])


class Toy(nn.Module):
    "A network of one line, which `TOY` repeats in JavaScript"
    def forward(self, x, t, y=None):
        y = torch.full_like(t, -1) if y is None else y
        return 0.4 * x + torch.sin(t / 200).view(-1, 1, 1, 1) + 0.1 * y.view(-1, 1, 1, 1)


TOY = '''const toy = (x, t, y) => x.map((x_i, i) => {
  const image = Math.floor(i / (x.length / y.length))
  return 0.4 * x_i + Math.sin(t[image] / 200) + 0.1 * y[image]
})
'''


def node(body: str, **given):
    "What a script returns, with the modules of the page and the values `given` at hand"
    if not shutil.which('node'): pytest.skip('node is not installed')
    live = (ROOT/'nbs/live').as_uri()
    script = f'''import * as live from '{live}/sampler.mjs'
import {{Noise}} from '{live}/noise.mjs'
import {{readFileSync}} from 'node:fs'
const given = JSON.parse(readFileSync(0)), schedule = new live.Schedule(given.schedule)
{TOY}async function run() {{ {body} }}
console.log(JSON.stringify(await run(), (k, v) => ArrayBuffer.isView(v) ? [...v] : v))'''
    given['schedule'] = dict(signal=SCHEDULE.signal.tolist(), noise=SCHEDULE.noise.tolist())
    done = subprocess.run(['node', '--input-type=module', '-e', script], text=True,
                          input=json.dumps(given), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def close(found, expected, eps):
    found = torch.tensor(found, dtype=expected.dtype).view(expected.shape)
    torch.testing.assert_close(found, expected, atol=eps, rtol=0)


@pytest.mark.parametrize('size', [784, 49, 1])
def test_noise_is_that_of_torch(size):  # eq-streams
    seeds = [0, 1, 12345, 2**53 - 1]
    found = node('''return given.seeds.map(seed => {
        const noise = new Noise(seed, 3)
        return [noise.draw(given.size), noise.draw(given.size)] })''', seeds=seeds, size=size)
    for seed, draws in zip(seeds, found):
        noise = Noise(seed, 3)
        for draw in draws: close(draw, noise.draw((size,)), 1e-5)  # float32 log and cos


def test_noise_beyond_one_block_of_the_generator():
    [found] = node('return [new Noise(3, 1).draw(1000 * 16)]')
    close(found, Noise(3, 1).draw((1000 * 16,)), 1e-5)


def test_times_are_those_of_the_schedule():
    found = node('return Array.from({length: 1000}, (_, i) => schedule.times(i + 1))')
    equal([n for n, times in enumerate(found, 1) if times != SCHEDULE.times(n)], [])
    equal(node('return schedule.times(5, 500)'), [500, 400, 200, 0])


@pytest.mark.parametrize('name', SOLVERS)
def test_table_of_a_solver(name):  # eq-coefficients
    step = SOLVERS[name]
    times = SCHEDULE.times(20)
    rows = node('''const solver = live.solvers[given.name]
        const visited = solver.visits ? solver.visits(given.times) : given.times
        return solver(visited.map(t => schedule.at(t)))''', name=name, times=times)
    expected = coefficient_table(step, SCHEDULE, step.visits(times))
    found = [[row[k] for k in expected[0]._fields] for row in rows]
    close(found, torch.tensor(expected, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize('name', SOLVERS)
def test_sample_of_a_toy_network(name):
    found = node('''const denoise = live.clipped(live.guided(live.denoiser(toy), 1.5))
        const options = {y: given.y, size: 49, solver: live.solvers[given.name],
                         times: schedule.times(10), seed: 5}
        const frames = []
        for await (const f of live.trajectory(denoise, schedule, options)) frames.push(f)
        return frames''', name=name, y=LABELS.tolist())
    net = clipped(guided(Denoiser(Toy(), V), LABELS, 1.5))
    times = SCHEDULE.times(10)
    expected = sample(net, SCHEDULE, SHAPE, step=SOLVERS[name], times=times, seed=5,
                      progress=False)
    equal([f['t'] for f in found], [*SOLVERS[name].visits(times)])
    close(found[-1]['x'], expected, 1e-5)


def test_noised_drawing_drawn_again():
    image = torch.linspace(-1, 1, 49).view(1, 1, 7, 7)
    found = node('''const x_T = live.noised(given.image, schedule.at(600), 3)
        const options = {y: [2], size: 49, solver: live.ancestral, seed: 4, x_T,
                         times: schedule.times(10, 600)}
        let last
        for await (const f of live.trajectory(live.denoiser(toy), schedule, options)) last = f
        return last.x''', image=image.flatten().tolist())
    start = q_sample(image, SCHEDULE.at(600, image), Noise(3, 1).draw((1, 7, 7)))
    expected = sample(Denoiser(Toy(), V), SCHEDULE, image.shape, step=ancestral(), seed=4,
                      times=range(600, -1, -100), x_T=start, y=[2], progress=False)
    close(found, expected, 1e-5)


def test_inpainting():  # eq-paste
    known = torch.linspace(-1, 1, 49).view(1, 1, 7, 7)
    mask = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    mask[..., :4, :] = True
    found = node('''const net = live.guided(live.denoiser(toy), 0.5)
        const denoise = live.clipped(live.inpaint(net, given.known, given.mask))
        const options = {y: [2], size: 49, solver: live.dpm_solver_pp, seed: 4,
                         times: schedule.times(10)}
        let last
        for await (const f of live.trajectory(denoise, schedule, options)) last = f
        return last.x''', known=known.flatten().tolist(), mask=mask.flatten().tolist())
    net = clipped(inpaint(guided(Denoiser(Toy(), V), torch.tensor([2]), 0.5), known, mask))
    expected = sample(net, SCHEDULE, known.shape, step=dpm_solver_pp(), seed=4,
                      times=SCHEDULE.times(10), progress=False)
    close(found, expected, 1e-5)
    equal(torch.tensor(found).view_as(known)[mask], known[mask])
