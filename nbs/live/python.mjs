// The lines of Python that draw the same images.
export function python({digit, images, guidance, seed, each}) {
  const solvers = [...new Set(each.map(({solver}) => solver))]
  const from = solver => solver === 'ancestral' ? 'sampling' : 'solvers'
  const label = digit >= 0 ? `torch.tensor([${digit}]${images > 1 ? ` * ${images}` : ''})` : null
  const denoiser = label ? `clipped(guided(network, ${label}, ${guidance}))` : 'clipped(network)'
  const draws = each.map(({solver, steps}, k) =>
    `${each.length > 1 ? `images_${k + 1}` : 'images'} = sample(
    denoiser, schedule, shape=(${images}, 1, 28, 28), step=${solver}(),
    times=schedule.times(${steps}), seed=${seed})`)
  return [...label ? ['import torch'] : [],
    'from diffusion_scratch.denoiser import clipped',
    ...label ? ['from diffusion_scratch.guidance import guided'] : [],
    'from diffusion_scratch.pretrained import load',
    'from diffusion_scratch.sampling import sample',
    ...solvers.map(solver => `from diffusion_scratch.${from(solver)} import ${solver}`), '',
    "network, schedule = load('mnist-conditional')", `denoiser = ${denoiser}`, ...draws].join('\n')
}
