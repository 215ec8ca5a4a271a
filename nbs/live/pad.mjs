// A canvas to draw on, by mouse, finger or keyboard: a drawing in [-1, 1], and a marked region.
import {SIDE, SIZE, paint} from './pictures.mjs'

export class Pad {
  constructor(canvas, changed) {
    Object.assign(this, {canvas, changed, tool: 'pen', cursor: null})
    this.clear()
    canvas.addEventListener('pointerdown', event => {
      event.preventDefault()
      canvas.setPointerCapture(event.pointerId)
      this.cursor = null
      this.last = this.place(event)
      this.stroke(this.last, this.last)
    })
    canvas.addEventListener('pointermove', event => {
      if (!this.last) return
      const here = this.place(event)
      this.stroke(this.last, here)
      this.last = here
    })
    for (const end of ['pointerup', 'pointercancel']) {
      canvas.addEventListener(end, () => { this.last = null })
    }
    canvas.addEventListener('keydown', event => this.key(event))
    canvas.addEventListener('blur', () => { this.cursor = null; this.show() })
  }

  clear() {
    this.image = new Float32Array(SIZE).fill(-1)
    this.marked = new Uint8Array(SIZE)
    this.show()
  }

  load(bytes) {                                // a real digit, 0..255
    this.image = Float32Array.from(bytes, byte => byte / 127.5 - 1)
    this.show()
  }

  place(event) {                               // in pixels of the image
    const box = this.canvas.getBoundingClientRect()
    return [(event.clientX - box.left) / box.width * SIDE,
            (event.clientY - box.top) / box.height * SIDE]
  }

  key(event) {                                 // arrows move, the space bar paints
    const move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}
    if (!(event.key in move) && event.key !== ' ') return
    event.preventDefault()
    this.cursor ??= [SIDE / 2, SIDE / 2]
    const before = this.cursor
    const [dx, dy] = move[event.key] ?? [0, 0]
    const inside = x => Math.min(SIDE - 0.5, Math.max(0.5, x))
    this.cursor = [inside(before[0] + dx), inside(before[1] + dy)]
    if (event.key === ' ' || event.shiftKey) this.stroke(before, this.cursor)
    else this.show()
  }

  stroke([x0, y0], [x1, y1]) {
    const radius = {pen: 1.2, eraser: 2.5, mark: 3}[this.tool]
    for (let i = 0; i < SIZE; i++) {
      const x = i % SIDE + 0.5 - x0, y = Math.floor(i / SIDE) + 0.5 - y0
      const [dx, dy] = [x1 - x0, y1 - y0], length = dx * dx + dy * dy
      const along = length ? Math.min(1, Math.max(0, (x * dx + y * dy) / length)) : 0
      const ink = Math.min(1, radius + 0.5 - Math.hypot(x - along * dx, y - along * dy))
      if (ink <= 0) continue
      if (this.tool === 'mark') this.marked[i] = 1
      else if (this.tool === 'pen') this.image[i] = Math.max(this.image[i], 2 * ink - 1)
      else this.image[i] = Math.min(this.image[i], 1 - 2 * ink)
    }
    this.show()
  }

  show() {
    paint(this.canvas, this.image)
    const context = this.canvas.getContext('2d')
    context.fillStyle = 'rgb(255 170 40 / .5)'                 // the marked region
    this.marked.forEach((mark, i) => {
      if (mark) context.fillRect(i % SIDE, Math.floor(i / SIDE), 1, 1)
    })
    if (this.cursor) {
      context.fillStyle = 'rgb(255 170 40)'
      context.fillRect(Math.floor(this.cursor[0]), Math.floor(this.cursor[1]), 1, 1)
    }
    this.changed?.()
  }
}
