"""Is the book in plain English? Lists what a reader would stumble over, chapter by chapter.

    python tools/english.py [PREFIX ...]          # phrases to replace, missing terms; fails if any
    python tools/english.py --long [PREFIX ...]   # also the sentences of more than 35 words
    python tools/english.py --counts [PREFIX ...] # only numbers, a line for each chapter

A PREFIX is the beginning of a chapter's file name, such as `07`. Without one, all are read.
Read are the prose, the captions, and the docstrings, comments and messages of the code.

- phrase    A metaphor or a private word of ours where the field has a word of its own. The list,
            with what to write instead, is `PHRASES`. Code and formulas are not read.
- term      A standard term that the chapter which introduces the idea must name: `TERMS`.
- long      A sentence of more than 35 words. It is listed, and fails nothing: some must be long.
"""
import argparse, re, sys
from pathlib import Path
from typing import Iterator, NamedTuple

import ledger, reading

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 35

# A regular expression, tried with its case ignored -> what to write instead
PHRASES = {
    r'without chance': 'deterministic',
    r'\b(no|any) chance (is|was|in it)\b': 'deterministic; random',
    r'\bby chance alone\b': 'at random',
    r'\basks? nobody\b': 'does not call the network',
    r'\bnobody (knows|asks?|asked|tells?|told|looks?|holds?|sees?|reads?)\b': 'say who, or passive',
    r'\b(network|denoiser|model|oracle|classifier|reader|solver|sampler|schedule)s? '
    r'(believes?|believed|thinks?|thought|knows|says|said|answers|answered)\b':
        'predicts, returns, outputs, contains',
    r'\b(is|are|was|were|be|being) (asked|told|questioned) (for|to|about|what|which|how|its?)\b':
        'is called, is evaluated, is given, is conditioned on',
    r'\basks? (the|a|its|each|every|our|this) (network|denoiser|model|oracle)\b':
        'evaluate, call',
    r'\bwhat (the|a|our) (network|denoiser|model|oracle) (believes?|says|thinks)\b':
        'what it predicts',
    r'\bbeliefs?\b': 'prediction; posterior; estimate',
    r'\bwagers?\b': 'assumption',
    r'\b(the|a|this|our|its|whole|that) bill\b': 'cost; the bound',
    r'\bstairs?\b': 'step; coarse grid',
    r"\bat (another|the|its|his) (\w+'s )?door\b": 'near the boundary',
    r'\bhow it (walks|walked)\b': 'which timesteps it uses',
    r'\b(the|a|this|that|each|every|one|whole|its|our|shorter|longer|same|reverse|long|short) '
    r'walks?\b': 'trajectory; sampling; timesteps',
    r'\bwalk(s|ed|ing)? (back|down|up|backwards?|through|along)\b': 'go from T to 0; sample',
    r'\b(sprinkles?|sprinkled)\b': 'add noise; a small amount of noise',
    r'\bconfetti\b': 'saturated noise',
    r'\b(pays? back|is paid later|price is paid)\b': 'costs',
    r'\bbuys?\b': 'gives; improves',
    r'\bno more and no less\b': 'exactly',
    r'\band no more\b': 'only',
    r'\bnothing (is|was) lost\b(?! (when|if))': 'say what is kept',
    r'\bby heart\b': 'memorise',
    r'\b(an?|the|its) (digit|image|picture|signal)s? (die|dies|died|dead)\b': 'fades; is lost',
    r'\bhow fast (should )?an image (should )?dies?\b': 'how fast the image fades',
    r'\bsister\b': 'counterpart',
    r'\b(a|the|its) verdict\b': 'result; conclusion',
    r'\bsomebody\b': 'another process; a user',
    r'\bin silence\b': 'without an error',
    r'\bthe wish\b': 'the target',
    r'\b(gets?|get|got) fooled\b': 'is deceived',
    r'\bhills?\b': 'mode; component of the mixture',
    r'\bhonest(ly)?\b': 'unbiased; fair; say which property',
    r'\bto the eye\b': 'visually',
    r'\b(on|by) the way of\b': 'during',
    r'\bof its like\b': 'similar ones',
    r'\bwhoever\b': 'a user who; anyone who',
    r'\bthe (rest|remainder) of the way\b': 'the remaining steps',
    r'\bshare of the way\b': 'fraction of the steps',
    r'\bmust not be (the same|equal|a|an|every|all|exactly)\b': 'need not (or is forbidden)',
    r'\b(is|are) nothing but\b': 'is just',
    r'\bin one breath\b': 'together',
    r'\b(a|the) riddle\b': 'question',
    r'\b(cheap|dear) (and|but|at)\b': 'fast; slow; takes little memory',
    r'\bgo(es)? (bad|wild)\b': 'fails',
    r'\bleans? on\b': 'uses; depends on',
    r'\btaken? on faith\b': 'assumed',
    r'\bin the dark\b': 'without this information',
    r'\bkeeps? (its|their) promise\b': 'holds',
    r'\bnoised anew\b': 'noised again',
    r'\banew\b': 'again',
    r'\bere\b|\bthereof\b|\bwherein\b|\bwherefore\b|\bhence\b|\bthus\b': 'so',
    r"\bwon't do\b|\bwill not do\b": 'is not enough',
    r'\bfor nothing\b': 'in vain; at no cost',
    r'\bfall(s)? out of\b': 'follows from',
}

# Chapter -> the standard terms that its prose must contain (case ignored)
TERMS = {
    '01': ['Markov chain', 'signal-to-noise ratio', 'variance preserving', 'variance exploding',
           'nats', 'forward process', 'reverse process'],
    '02': ['reparametrisation', 'Kullback-Leibler', 'marginal', 'posterior', 'mixture'],
    '03': ['v-prediction', 'preconditioning', 'parametrisation'],
    '04': ['score', 'denoising score matching', "Tweedie's formula", 'posterior mean'],
    '05': ['timestep embedding', 'group normalisation', 'self-attention', 'receptive field'],
    '06': ['variational lower bound', 'ELBO', 'hierarchical', 'variational autoencoder',
           "Jensen's inequality", 'stratified'],
    '07': ['ancestral sampling', 'law of total variance', 'Algorithm 2', 'Langevin',
           'number of function evaluations'],
    '09': ['Algorithm 1', 'exponential moving average', 'gradient clipping'],
    '10': ['deterministic', 'probability flow', 'ordinary differential equation', 'NFE',
           'continuity equation', 'local error'],
    '11': ['stochastic differential equation', 'flow matching', 'rectified flow',
           'Euler-Maruyama', 'velocity'],
    '12': ['classifier-free guidance', 'classifier guidance', 'null label'],
    '13': ['inpainting', 'inversion', 'interpolation'],
    '16': ['Frechet distance', 'maximum mean discrepancy', 'Wasserstein', 'precision',
           'recall', 'confidence interval'],
    '17': ['bits per dimension', 'change of variables', 'ELBO', 'trace estimator'],
}


class Text(NamedTuple):
    "A piece of a chapter that is read: cell number, kind of text, the words"
    cell: int
    kind: str
    words: str


class Problem(NamedTuple):
    chapter: str
    cell: int
    rule: str
    text: str


def prose(source: str) -> str:
    "Markdown without what is not prose: code, formulas, addresses, ids, citations, tables' rules"
    s = re.sub(r'```.*?```', ' ', source, flags=re.S)
    s = re.sub(r'\$\$.*?\$\$(\s*\{[^}]*\})?', ' (formula) ', s, flags=re.S)
    s = re.sub(r'\$[^$]+\$', 'x', s)
    s = re.sub(r'`[^`]*`', 'code', s)
    s = re.sub(r'\]\([^)]*\)', ']', s)
    s = re.sub(r'\{[#.][^}]*\}', ' ', s)
    return re.sub(r'<[^>]+>', ' ', s)


def texts(file: Path) -> Iterator[Text]:
    "All that is read of a chapter"
    for i, (cell, source) in enumerate(ledger.cells(file)):
        if cell == 'markdown': yield Text(i, 'prose', prose(source))
        if cell != 'code': continue
        for kind, words in reading.words_of_code(source):
            if kind == 'caption': words = words.strip('"\'')
            if kind != 'string' or ' ' in words: yield Text(i, kind, prose(words))


def sentences(words: str) -> Iterator[str]:
    "The sentences of a piece of prose: tables, headings and list items end one too"
    for block in re.split(r'\n\s*\n|\n(?=[-*#|>:]|\d+\. )', words):
        if block.lstrip().startswith('|'): continue
        for sentence in re.split(r'(?<=[.!?:;])["\')*]*\s+(?=[A-Z*("\[x`])', block):
            yield ' '.join(sentence.split())


def around(words: str, m: re.Match) -> str:
    "A hit with some words on each side"
    return ' '.join(words[max(0, m.start() - 30):m.end() + 30].split())


def problems(path: Path, long: bool = False) -> Iterator[Problem]:
    "What is to be mended in one chapter"
    found = list(texts(path))
    for t in found:
        for pattern, instead in PHRASES.items():
            for m in re.finditer(pattern, t.words, flags=re.I):
                yield Problem(path.stem, t.cell, 'phrase', f'…{around(t.words, m)}…  -> {instead}')
        if long and t.kind == 'prose':
            for s in sentences(t.words):
                n = len(re.findall(r"[\w'-]+", s))
                if n > LONGEST:
                    yield Problem(path.stem, t.cell, 'long', f'{n} words: {s[:90]}…')
    whole = ' '.join(' '.join(t.words for t in found if t.kind != 'string').split()).lower()
    for term in TERMS.get(path.stem[:2], []):
        if term.lower() not in whole: yield Problem(path.stem, -1, 'term', f'does not name: {term}')


def main() -> int:
    "Report; the number of phrases and missing terms decides the exit status"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument('prefix', nargs='*')
    p.add_argument('--long', action='store_true', help='also list sentences that are too long')
    p.add_argument('--counts', action='store_true', help='only numbers')
    args = p.parse_args()
    chapters = [f for f in sorted((ROOT / 'nbs').glob('*.ipynb'))
                if not args.prefix or any(f.name.startswith(x) for x in args.prefix)]
    failed = 0
    for f in chapters:
        found = list(problems(f, args.long or args.counts))
        bad = [x for x in found if x.rule != 'long']
        failed += len(bad)
        if args.counts:
            print(f'{f.stem:16} {len(bad):4} to mend {len(found) - len(bad):4} long sentences')
            continue
        for x in found: print(f'{x.chapter} cell {x.cell}: {x.rule}: {x.text}')
    print(f'{failed} to mend in {len(chapters)} chapters')
    return 1 if failed else 0


if __name__ == '__main__': sys.exit(main())
