"File compressors and gray-value frequencies: against the libraries, NumPy and closed forms"
import bz2, gzip, json, lzma, math, struct, zlib
from io import BytesIO
import numpy as np, pytest, torch
from PIL import Image
from conftest import ROOT, gen, randn
from diffusion_scratch.data import mnist_mini, to_float
from diffusion_scratch.likelihood import (compressed_bits, frequency_bits, gray_posterior,
                                          pixel_frequencies, png_bits)
from diffusion_scratch.noising import q_sample
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.schedule import Schedule, cosine_betas

SCHEDULE, DIGITS = Schedule(cosine_betas()), mnist_mini().images[::25]  # 200
GRAYS = torch.arange(256, dtype=torch.float64) / 127.5 - 1

def source(D=12, seed=0) -> torch.Tensor:
    "Probabilities of the gray values of D independent pixels"
    return (3 * torch.randn(D, 256, generator=gen(seed), dtype=torch.float64)).softmax(1)

def drawn(P, n, seed=1) -> torch.Tensor:
    values = torch.multinomial(P, n, replacement=True, generator=gen(seed))
    return to_float(values.T.to(torch.uint8)).view(n, 1, 3, len(P) // 3)

def entropy(P) -> float: return -(P * P.log2()).sum(1).mean().item()

@pytest.mark.parametrize('compress, restore', [
    (gzip.compress, gzip.decompress), (bz2.compress, bz2.decompress),
    (lzma.compress, lzma.decompress), (zlib.compress, zlib.decompress)])
def test_the_file_holds_all_bytes_and_its_size_is_the_number(compress, restore):
    "The pixels come back out of the very bytes that were counted"
    written = []
    def kept(content): written.append(compress(content)); return written[-1]
    bits = compressed_bits(to_float(DIGITS), kept)
    assert bits == 8 * len(written[0]) / (200 * 784)
    assert restore(written[0]) == DIGITS.numpy().tobytes()

@pytest.mark.parametrize('channels', [1, 3])
def test_a_png_has_the_size_of_the_file_that_pillow_writes(channels, tmp_path):
    "One picture, the images below each other; a file on the disk, read again"
    images = torch.randint(256, (5, channels, 6, 7), generator=gen(), dtype=torch.uint8) // 64 * 64
    tall = images.permute(0, 2, 3, 1).reshape(30, 7, channels).squeeze(2).numpy()
    Image.fromarray(tall).save(tmp_path/'tall.png', optimize=True)
    size = (tmp_path/'tall.png').stat().st_size
    assert png_bits(to_float(images)) == 8 * size / images.numel()
    with Image.open(tmp_path/'tall.png') as there: assert (np.array(there) == tall).all()

def test_a_png_is_its_filtered_rows_deflated():
    "PNG's own parts: header, chunks and zlib data whose rows, unfiltered, are the pixels"
    black = torch.zeros(4, 1, 5, 5, dtype=torch.uint8)
    file = BytesIO()
    Image.fromarray(np.zeros((20, 5), np.uint8)).save(file, 'png', optimize=True)
    content, at, data = file.getvalue(), 8, b''
    while at < len(content):
        length, kind = struct.unpack('>I4s', content[at:at + 8])
        if kind == b'IDAT': data += content[at + 8:at + 8 + length]
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(20, -1)
    assert not rows[:, 1:].any() and rows.shape[1] in (2, 6)  # of 1 or 8 bits a pixel
    assert png_bits(to_float(black)) == 8 * len(content) / 100

def test_frequencies_of_a_known_source_reach_its_entropy():
    "eq-frequencies: new images cost the entropy, 4 standard errors, and (K - 1) / 2N for fitting"
    P, n = source(), 100_000
    found = frequency_bits(pixel_frequencies(drawn(P, n)), drawn(P, 20_000, seed=2))
    fitting = 255 / (2 * n * math.log(2))
    assert -4 * found.error < found.total - entropy(P) < 4 * found.error + fitting
    of_truth = frequency_bits(P, drawn(P, 20_000, seed=2))  # the same images: far less noise
    assert 0 < found.total - of_truth.total < 2 * fitting

def test_frequencies_are_counts():
    "eq-frequencies, counted by NumPy; each pixel's add up to 1; the bits are those of each image"
    x, new, a = DIGITS[:40], DIGITS[40:60], 0.3
    P = pixel_frequencies(to_float(x), smoothing=a)
    flat = x.view(40, 784).numpy()
    for i in (0, 300, 406, 783):
        counts = np.bincount(flat[:, i], minlength=256)
        assert torch.allclose(P[i], torch.from_numpy((counts + a) / (40 + 256 * a)), rtol=1e-12)
    assert torch.allclose(P.sum(1), torch.ones(784).double(), rtol=1e-12)
    b = frequency_bits(P, to_float(new))
    each = [-np.mean([math.log2(P[i, k]) for i, k in enumerate(v)]) for v in
            new.view(20, 784).tolist()]
    assert np.allclose(b.each, each, rtol=1e-12) and b.n == 20
    assert b.total == pytest.approx(np.mean(each))
    assert b.error == pytest.approx(np.std(each, ddof=1) / 20**0.5)

@pytest.mark.parametrize('t', [1, 10, 300, 1000])
def test_gray_posterior_is_bayes_rule_and_the_oracle_of_a_finite_set(t):
    "eq-gray-posterior: from the joint probabilities; its mean is MixtureOracle's prediction"
    values = torch.randint(256, (50, 1), generator=gen())
    P, x0 = source(1), to_float(values.to(torch.uint8)).double()
    level = SCHEDULE.at(t, x0)
    x_t = q_sample(x0, level, randn(50, 1, seed=3))
    found = gray_posterior(P, x_t, level)
    signal, noise = level.signal[0].item(), level.noise[0].item()
    log = -(x_t - signal * GRAYS)**2 / (2 * noise**2)
    joint = P * (log - log.max(1, keepdim=True).values).exp()
    assert found.shape == (50, 1, 256)
    assert torch.allclose(found[:, 0], joint / joint.sum(1, keepdim=True), atol=1e-12)
    oracle = MixtureOracle(GRAYS[:, None], weights=P[0])
    assert torch.allclose(found @ GRAYS, oracle(x_t, level).x0, atol=1e-9)

def test_the_last_step_by_frequencies_is_a_code_for_the_source():
    """eq-gray-posterior: x_1 tells about a pixel, so the bits given x_1 are fewer than the entropy,
    and by the chain rule entropy = information + conditional entropy; 4 standard errors"""
    P, n = source(3), 4000
    x0 = drawn(P, n).double()
    level = SCHEDULE.at(40, x0)
    posterior = gray_posterior(P, q_sample(x0, level, randn(*x0.shape, seed=5)), level)
    k = ((x0 + 1) * 127.5).round().long().flatten(1)[..., None]
    bits = -posterior.gather(2, k).log2().flatten()
    own = -(posterior * posterior.clamp(min=1e-300).log2()).sum(2).flatten()
    gap = bits - own                        # the same on average, if the posterior is right
    assert abs(gap.mean()) < 4 * gap.std() / len(gap)**0.5
    assert 0 < bits.mean() < entropy(P)

@pytest.mark.parametrize('f, options, error, says', [
    (compressed_bits, dict(x0=DIGITS, compress=gzip.compress), TypeError, 'to_float'),
    (png_bits, dict(x0=to_float(DIGITS) + 0.003), ValueError, 'gray values'),
    (pixel_frequencies, dict(x0=2 * to_float(DIGITS)), ValueError, 'gray values'),
    (pixel_frequencies, dict(x0=DIGITS.numpy()), TypeError, 'x0'),
    (pixel_frequencies, dict(x0=to_float(DIGITS), smoothing=0.), ValueError, 'smoothing = 0.0'),
    (pixel_frequencies, dict(x0=to_float(DIGITS), smoothing='a'), TypeError, 'smoothing'),
    (frequency_bits, dict(P=source(784), x0=to_float(DIGITS) * math.nan), ValueError,
     'gray values')])
def test_refusals(f, options, error, says):
    with pytest.raises(error, match=says): f(**options)

def test_the_stored_sizes_are_those_published_for_the_same_test_digits():
    "gzip, bz2 and PNG of Townsend et al. (2019), table of MNIST: to their rounding and a little"
    found = json.loads((ROOT/'nbs'/'assets'/'likelihood'/'files.json').read_text())
    together = found['together']
    assert together['gzip'] == pytest.approx(1.64, abs=0.01)
    assert together['bz2'] == pytest.approx(1.42, abs=0.01)
    assert found['apart']['PNG']['total'] == pytest.approx(2.79, abs=0.02)
