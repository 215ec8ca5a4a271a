// The lines of Python that draw the same images. `stated` is a digit, attribute=value,... or empty
export function python({network, stated, attributes, shape, images, guidance, seed, each}) {
  const solvers = [...new Set(each.map(({solver}) => solver))]
  const from = solver => solver === 'ancestral' ? 'sampling' : 'solvers'
  const one = attributes ? `attributes_named('${stated}', about('${network}')['classes'])` : stated
  const labels = `torch.tensor([${one}]${images > 1 ? ` * ${images}` : ''})`
  const denoiser = !stated ? 'clipped(network)'
    : `clipped(guided(network, ${attributes ? 'labels' : labels}, ${guidance}))`
  const draws = each.map(({solver, steps}, k) =>
    `${each.length > 1 ? `images_${k + 1}` : 'images'} = sample(
    denoiser, schedule, shape=(${[images, ...shape].join(', ')}), step=${solver}(),
    times=schedule.times(${steps}), seed=${seed})`)
  const named = attributes && stated
  return [...stated ? ['import torch'] : [],
    'from diffusion_scratch.denoiser import clipped',
    ...stated ? ['from diffusion_scratch.guidance import guided'] : [],
    `from diffusion_scratch.pretrained import ${named ? 'about, ' : ''}load`,
    ...named ? ['from diffusion_scratch.run import attributes_named'] : [],
    'from diffusion_scratch.sampling import sample',
    ...solvers.map(solver => `from diffusion_scratch.${from(solver)} import ${solver}`), '',
    `network, schedule = load('${network}')`, ...named ? [`labels = ${labels}`] : [],
    `denoiser = ${denoiser}`, ...draws].join('\n')
}
