"The data set of cartoon faces: what is drawn, what is resumed, what is refused"
import csv, hashlib, io, json, re, subprocess, sys
from collections import Counter
from importlib.util import find_spec
from itertools import combinations
import numpy as np
import pytest
import yaml
from conftest import ROOT, refused
from PIL import Image
import faces
from diffusion_scratch.data import image_folder
from diffusion_scratch.features import face_classifier, most_likely

draws = pytest.mark.skipif(not all(map(find_spec, faces.PACKAGES)),
                           reason="pip install 'diffusion_scratch[faces]' draws the faces")
HELD = dict(hat='yes', beard='red')

def made(folder, n=3, **kw): return faces.make(folder, n, progress=False, **kw)

def files(folder): return {f.relative_to(folder).as_posix(): f.read_bytes()
                           for f in sorted(folder.rglob('*')) if f.is_file()}

def run(monkeypatch, *words):
    "What ends the command"
    monkeypatch.setattr(sys, 'argv', ['faces.py', *map(str, words)])
    with pytest.raises(SystemExit) as e: faces.main()
    return e.value.code

# --- attributes: without the packages that draw

def test_values_are_allowed_and_nearly_uniform():
    "Each count to 4.5 standard errors of a binomial; pairs by chi-square, 6 standard errors"
    rows, n = [faces.attributes(0, i) for i in range(6000)], 6000
    for name, values in faces.ATTRIBUTES.items():
        counts, whole = Counter(r[name] for r in rows), faces.weighted(name)
        assert set(counts) == set(values)
        for v in values:
            p = whole.count(v) / len(whole)
            assert abs(counts[v] - n * p) < 4.5 * (n * p * (1 - p))**0.5, (name, v)
    for a, b in combinations(faces.ATTRIBUTES, 2):
        counts = Counter((r[a], r[b]) for r in rows)
        t = np.array([[counts[v, w] for w in faces.ATTRIBUTES[b]] for v in faces.ATTRIBUTES[a]])
        expected = np.outer(t.sum(1), t.sum(0)) / n
        free = (len(t) - 1) * (len(t[0]) - 1)
        assert ((t - expected)**2 / expected).sum() < free + 6 * (2 * free)**0.5, (a, b)

def test_a_face_depends_on_seed_and_number_alone_and_the_table_never_changes():
    "The values of today: another Python, or another library, must give the same"
    assert [faces.attributes(0, i) for i in range(5)] == [faces.attributes(0, i) for i in range(5)]
    text = faces.table([faces.attributes(0, i) for i in range(1000)])
    assert hashlib.sha256(text).hexdigest()[:16] == '4907e8e283713aaf'
    assert faces.attributes(1, 0) != faces.attributes(0, 0)

def test_a_combination_is_held_out_and_nothing_else_changes():
    whole = [faces.attributes(0, i) for i in range(2000)]
    held = [faces.attributes(0, i, [HELD]) for i in range(2000)]
    assert not any(HELD.items() <= f.items() for f in held)
    assert all(h == w for h, w in zip(held, whole) if not HELD.items() <= w.items())
    assert 100 < sum(h != w for h, w in zip(held, whole)) < 240  # a twelfth: 167 +- 12

@pytest.mark.parametrize('text, says', [
    ('hat', "'hat' is no attribute=value; write for example hat=yes,beard=red"),
    ('', 'is no attribute=value'), ('hats=yes', "'hats' is no attribute; allowed: hat, glasses,"),
    ('hat=maybe', 'hat=maybe is not allowed; the values of hat: no, yes'),
    ('hat=yes,hat=no', 'hat is named twice'), ('hat=yes,hat=yes', 'hat is named twice')])
def test_combinations_that_are_refused(text, says):
    refused(lambda: faces.parse_combination(text), re.escape(says))
    assert faces.parse_combination('hat=yes, beard=red') == HELD

def test_everything_cannot_be_held_out():
    all_faces = [dict(hat='yes'), *[dict(hat='no', skin=s) for s in faces.ATTRIBUTES['skin']]]
    refused(lambda: faces.check_possible([dict(hat='no', beard='no'), *all_faces]),
            'excludes every face')
    faces.check_possible([dict(hat='yes'), dict(skin='tan')])

def test_without_the_packages_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'resvg_py', None)
    says = r"pip install 'diffusion_scratch\[faces\]'"
    refused(lambda: made(tmp_path/'f'), says, ImportError)
    assert not (tmp_path/'f').exists()

def test_the_help_teaches(monkeypatch, capsys):
    assert run(monkeypatch, '--help') == 0
    said = capsys.readouterr().out
    for word in ('diffusion_scratch[faces]', '--without hat=yes,beard=red', 'attributes.csv',
                 'diffusion-train configs/faces.yaml', 'sunglasses'): assert word in said

@pytest.mark.parametrize('words, says', [
    (['--n', '0'], 'whole number from 1'), (['--size', '50'], 'a multiple of 16'),
    (['--seed', '-1'], 'whole number from 0'), (['--without', 'hat=no,eyes=blue'], "'eyes' is no")])
def test_a_wrong_option_is_refused_in_words(words, says, tmp_path, monkeypatch, capsys):
    status = run(monkeypatch, tmp_path/'f', *words)  # a text, or 2 after one
    assert status and says in f'{status} {capsys.readouterr().err}'
    assert not (tmp_path/'f').exists()

def test_what_the_chapter_shows_is_this_data_set():
    "The stored counts against those of the first 20,000 faces, counted again for one pair"
    facts = json.loads((ROOT/'nbs'/'assets'/'faces'/'data.json').read_text())
    assert facts['values'] == {k: list(v) for k, v in faces.ATTRIBUTES.items()}
    n, without = facts['made']['n'], facts['made']['without']
    for kind, rows in (('all', [faces.attributes(0, i) for i in range(n)]),
                       ('without', [faces.attributes(0, i, [without]) for i in range(n)])):
        counts = Counter((r['hat'], r['beard']) for r in rows)
        assert facts['pairs'][kind]['hat, beard'] == [
            [counts[h, b] for b in faces.ATTRIBUTES['beard']] for h in faces.ATTRIBUTES['hat']]

def test_the_config_is_that_of_celeba_hq_but_for_size_steps_and_data():
    "The network itself: test_shipped.py"
    ours, theirs = (yaml.safe_load((ROOT/'configs'/f'{n}.yaml').read_text(encoding='utf-8'))
                    for n in ('faces', 'celeba_hq'))
    free = {'run', 'preview_every', 'save_every', 'data', 'network', 'sampling'}
    same = (ours.keys() | theirs.keys()) - free - {'training'}
    assert {k: ours[k] for k in same} == {k: theirs[k] for k in same}
    for k in ('batch_size', 'decay'): assert ours['training'][k] == theirs['training'][k]

# --- drawing

@draws
def test_the_same_bytes_twice_and_in_a_fresh_process(tmp_path):
    here = made(tmp_path/'a', 4)
    line = [sys.executable, ROOT/'tools'/'faces.py', tmp_path/'b', '--n', '4']
    subprocess.run(line, capture_output=True, check=True)
    a, b = files(tmp_path/'a'), files(tmp_path/'b')
    facts = [json.loads(there.pop('.manifest.json')) | dict(date=None) for there in (a, b)]
    assert a == b and len(a) == 5
    assert facts[0] == facts[1] and here['complete']
    assert here['pixels_sha256'] == facts[0]['pixels_sha256']

@draws
def test_the_folder_and_a_prefix_of_more(tmp_path):
    "Table and manifest agree with the files; a few faces are the first of many"
    made(tmp_path, 2)
    few = files(tmp_path)
    m = made(tmp_path, 4)
    many = files(tmp_path)
    assert all(many[k] == few[k] for k in few if k.endswith('png'))
    rows = list(csv.DictReader(io.StringIO(many['attributes.csv'].decode())))
    assert [r.pop('file') for r in rows] == [f'images/{i:05d}.png' for i in range(4)]
    assert rows == [faces.attributes(0, i) for i in range(4)]
    for name, counts in m['counts'].items():
        assert {v: c for v, c in counts.items() if c} == Counter(r[name] for r in rows)
    for i in range(4):
        with Image.open(tmp_path/f'images/{i:05d}.png') as im:
            assert (im.mode, im.size) == ('RGB', (64, 64))
            assert im.getpixel((0, 0)) == im.getpixel((63, 0)) == (255, 255, 255)
    refused(lambda: made(tmp_path, 3), 'holds 4 faces, more than n = 3')

@draws
def test_a_stopped_run_goes_on_and_damaged_files_are_made_again(tmp_path, monkeypatch):
    made(tmp_path/'whole')
    want = {k: v for k, v in files(tmp_path/'whole').items() if k != '.manifest.json'}
    drawn, draw, stops = [], faces.draw, [2]
    def stop(face, seed, i, size):
        if i in stops: raise KeyboardInterrupt
        drawn.append(i)
        return draw(face, seed, i, size)
    monkeypatch.setattr(faces, 'draw', stop)
    with pytest.raises(KeyboardInterrupt): made(tmp_path/'f')
    assert not json.loads((tmp_path/'f'/'.manifest.json').read_text())['complete']
    stops.clear()
    made(tmp_path/'f')
    assert drawn == [0, 1, 2]  # 0 and 1 were kept
    file = tmp_path/'f'/'images'/'00001.png'
    for harm in (lambda b: b[:-20], lambda b: b[:99] + bytes([b[99] ^ 1]) + b[100:], lambda b: b''):
        drawn.clear()
        file.write_bytes(harm(want['images/00001.png']))
        made(tmp_path/'f')
        assert drawn == [1]
    file.write_bytes(want['images/00000.png'])  # whole, but another face: the checksum sees it
    made(tmp_path/'f')
    assert {k: v for k, v in files(tmp_path/'f').items() if k != '.manifest.json'} == want

@draws
def test_other_settings_and_other_folders_are_refused(tmp_path):
    made(tmp_path/'f', 1)
    before = files(tmp_path/'f')
    for kw, says in ((dict(seed=1), 'made with seed = 0, not 1'),
                     (dict(size=32), 'made with size = 64, not 32'),
                     (dict(without=[HELD]), 'made with without = ')):
        refused(lambda: made(tmp_path/'f', 1, **kw), says)
    assert files(tmp_path/'f') == before
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'photo.jpg').write_bytes(b'')
    refused(lambda: made(tmp_path/'mine'), "'photo.jpg' and no .manifest.json")
    (tmp_path/'f'/'.manifest.json').write_text('{')
    refused(lambda: made(tmp_path/'f'), '.manifest.json is damaged; delete it')

@draws
def test_each_value_can_be_seen():
    "Any two values of an attribute differ in some pixels, also under a hat, a beard and glasses"
    for more in ({}, dict(hat='yes', beard='black', glasses='sunglasses')):
        one = faces.attributes(0, 3) | more
        for name in faces.ATTRIBUTES.keys() - more.keys():
            seen = [np.asarray(faces.draw(one | {name: v}, 0, 3)).astype(int)
                    for v in faces.ATTRIBUTES[name]]
            for a, b in combinations(seen, 2):
                assert (np.abs(a - b).max(2) > 40).sum() >= 6, (name, more)

@draws
def test_a_face_is_what_the_package_draws_whole():
    "Layers put together here, against python_avatars' own drawing: one byte, by rounding"
    import python_avatars as p
    face = faces.attributes(0, 3) | dict(hat='no', glasses='yes', beard='red')
    of = {n: faces.ATTRIBUTES[n][v] for n, v in face.items()}
    free = {n: faces.choose(o, 0, 3, n) for n, o in faces.UNLISTED.items()}
    svg = p.Avatar(
        style=p.AvatarStyle.TRANSPARENT, eyes=p.EyeType.DEFAULT, nose=p.NoseType.DEFAULT,
        top=p.HairType[of['hair']], hair_color=of['hair_color'], skin_color=of['skin'],
        facial_hair=p.FacialHairType.BEARD_MEDIUM, facial_hair_color=of['beard'],
        mouth=p.MouthType[of['mouth']], accessory=p.AccessoryType[of['glasses']],
        clothing=p.ClothingType[free['neckline']], clothing_color=of['clothes'],
        eyebrows=p.EyebrowType[free['eyebrows']], shirt_graphic=p.ClothingGraphic.SKULL).render()
    whole = faces.raster(svg, 64)
    whole = Image.alpha_composite(Image.new('RGBA', whole.size, 'white'), whole)
    want = np.asarray(whole.convert('RGB').reduce(faces.DRAWN)).astype(int)
    assert np.abs(np.asarray(faces.draw(face, 0, 3)) - want).max() <= 1

# --- read

@draws
def test_the_shipped_classifier_reads_new_faces(tmp_path):
    "Of a seed that it was neither trained nor tested on; also faces with a hat and a red beard"
    made(tmp_path/'new', 300, seed=3)
    data, eye = image_folder(tmp_path/'new', 64, attributes='attributes.csv'), face_classifier()
    sizes = [len(v) for v in eye.classes.values()]
    assert data.classes == eye.classes
    assert {a: set(v) for a, v in eye.classes.items()} == \
           {a: set(v) for a, v in faces.ATTRIBUTES.items()}
    p = eye(data.images).p
    for group in p.split(sizes, 1): assert (group.sum(1) - 1).abs().max() < 1e-12
    right = most_likely(p, sizes) == data.labels
    assert right.double().mean(0).min() > 0.97 and right.double().mean() > 0.99
    held = (data.labels[:, 0] == 1) & (data.labels[:, 2] == data.classes['beard'].index('red'))
    assert held.sum() > 10 and right[held].double().mean() > 0.99
