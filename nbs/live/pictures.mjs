// Images in [-1, 1] on a canvas, one pixel of the canvas for each pixel: CSS enlarges them.
export const SIDE = 28, SIZE = SIDE * SIDE, GAP = 2             // of a digit

export function paint(canvas, images, [channels, height, width] = [1, SIDE, SIDE]) {
  const pixels = height * width, size = channels * pixels, n = images.length / size
  const context = canvas.getContext('2d')
  canvas.width = n * width + (n - 1) * GAP                     // side by side
  canvas.height = height
  canvas.style.setProperty('--pixels', canvas.width)
  for (let k = 0; k < n; k++) {
    const picture = context.createImageData(width, height)
    for (let i = 0; i < pixels; i++) {
      const of = channel => images[k * size + channel % channels * pixels + i]
      const color = [of(0), of(1), of(2)].map(x => 127.5 * (x + 1))    // clamped by the canvas
      picture.data.set([...color, 255], 4 * i)
    }
    context.putImageData(picture, k * (width + GAP), 0)
  }
}
