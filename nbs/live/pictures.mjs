// Images in [-1, 1] on a canvas, one pixel of the canvas for each pixel: CSS enlarges them.
export const SIDE = 28, SIZE = SIDE * SIDE, GAP = 2

export function paint(canvas, images) {        // side by side
  const n = images.length / SIZE
  const context = canvas.getContext('2d')
  canvas.width = n * SIDE + (n - 1) * GAP
  canvas.height = SIDE
  canvas.style.setProperty('--pixels', canvas.width)
  for (let k = 0; k < n; k++) {
    const picture = context.createImageData(SIDE, SIDE)
    for (let i = 0; i < SIZE; i++) {
      const gray = 127.5 * (images[k * SIZE + i] + 1)          // clamped by the canvas
      picture.data.set([gray, gray, gray, 255], 4 * i)
    }
    context.putImageData(picture, k * (SIDE + GAP), 0)
  }
}
