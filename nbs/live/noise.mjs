// Standard normal noise, with the same numbers as `Noise` of chapter 7 in PyTorch on a CPU.

// The Mersenne Twister mt19937 (Matsumoto & Nishimura 1998), which is PyTorch's generator
class MersenneTwister {
  constructor(seed) {                                          // 0..2^32-1
    this.state = new Uint32Array(624)
    this.state[0] = seed
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1]
      this.state[i] = Math.imul(1812433253, before ^ (before >>> 30)) + i
    }
    this.position = 624
  }

  twist() {                                                    // the next 624 numbers
    const state = this.state
    for (let i = 0; i < 624; i++) {
      const bits = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff)
      state[i] = state[(i + 397) % 624] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0)
    }
    this.position = 0
  }

  next() {                                                     // a whole number below 2^32
    if (this.position === 624) this.twist()
    let bits = this.state[this.position++]
    bits ^= bits >>> 11
    bits ^= (bits << 7) & 0x9d2c5680
    bits ^= (bits << 15) & 0xefc60000
    return (bits ^ (bits >>> 18)) >>> 0
  }
}

// `tensor.normal_(generator=...)` in float32: 16 uniform numbers make 16 normal ones (Box-Muller).
// The size is a multiple of 16
function normal(generator, size) {
  const out = new Float32Array(size)
  for (let i = 0; i < size; i++) out[i] = (generator.next() & 0xffffff) / 2 ** 24
  for (let block = 0; block < size; block += 16) {
    for (let i = block; i < block + 8; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - out[i])), angle = 2 * Math.PI * out[i + 8]
      out[i] = radius * Math.cos(angle)
      out[i + 8] = radius * Math.sin(angle)
    }
  }
  return out
}

// Which of the 2^32 generators belongs to a seed's image 0 (eq-streams)
function firstStream(seed) {
  const golden = 0x9E3779B97F4A7C15n                           // the fraction of the golden ratio
  return Number(BigInt.asUintN(64, (BigInt(seed) + 1n) * golden) >> 32n)
}

// Noise in which image i depends on (seed, i) alone
export class Noise {
  constructor(seed, n) {
    const first = firstStream(seed)
    this.streams = Array.from({length: n}, (_, i) => new MersenneTwister((first + i) % 2 ** 32))
  }

  draw(size) {                       // of one image -> one image after the other, n * size numbers
    const whole = 16 * Math.ceil(size / 16)
    const out = new Float32Array(this.streams.length * size)
    this.streams.forEach((stream, i) => {
      out.set(normal(stream, whole).subarray(0, size), i * size)
    })
    return out
  }
}
