"""What Quarto resolves and smalldocs does not: numbers of equations, figures, tables and sections, references to them, citations."""
import codecs, json, re
from pathlib import Path

import latexcodec  # lets strings be decoded from LaTeX
import yaml
from pybtex.database import parse_file

KINDS = dict(eq='Equation', fig='Figure', tbl='Table', sec='Section')
PREFIX = re.compile(r'^\d+[a-zA-Z0-9]*_')                       # what nbdev takes off a page's name

def text(x): return ''.join(x) if isinstance(x, list) else (x or '')
def page(name): return PREFIX.sub('', Path(name).name.lower()) # 01_schedule.ipynb -> schedule.ipynb

# ---------------------------------------------------------------- bibliography
def read_bib(path: Path) -> dict:
    "key -> entry of a BibTeX file"
    return dict(parse_file(str(path), 'bibtex').entries)

def latex(s: str) -> str:
    "A BibTeX string as plain text"
    return re.sub(r'[{}]', '', codecs.decode(s, 'ulatex'))

def surnames(e) -> str:
    "`Ho et al.` from an entry's authors"
    ns = [' '.join(p.last_names) for p in e.persons.get('author', [])] or ['?']
    return latex(ns[0] if len(ns) == 1 else f'{ns[0]} and {ns[1]}' if len(ns) == 2 else f'{ns[0]} et al.')

def year(e) -> str: return e.fields.get('year', 'n.d.')

def full_ref(e) -> str:
    "An entry of the list of references, in Markdown"
    f = e.fields
    authors = latex('; '.join(f"{' '.join(p.last_names)}, {' '.join(p.first_names + p.middle_names)}" for p in e.persons.get('author', [])))
    title = f'[{latex(f["title"])}]({f["url"]})' if 'url' in f else latex(f['title'])
    where = f.get('booktitle') or f.get('journal') or f.get('publisher') or ''
    return f'{authors} ({year(e)}). {title}.' + (f' *{latex(where)}*.' if where else '')

# ---------------------------------------------------------------- cross-references
FENCE = re.compile(r'(^```.*?^```[^\n]*$|`[^`\n]+`)', re.M | re.S)   # code is left alone
EQ = re.compile(r'\$\$\s*\n(.*?)\n\s*\$\$[ \t]*\{#(eq-[\w-]+)\}', re.S)
HEAD = re.compile(r'^(#{2,6})[ \t]+(.*?)[ \t]*(\{[^}\n]*\})?[ \t]*$', re.M)
TBL = re.compile(r'^:[ \t]+(.*?)[ \t]*\{#(tbl-[\w-]+)[^}\n]*\}[ \t]*$', re.M)
REF = re.compile(r'(?<![\w`@/.])(\[)?(-)?@((?:eq|fig|tbl|sec)-[\w-]*\w)(\])?')
CITE_GROUP = re.compile(r'\[((?:[^\[\]]*?)-?@[\w:.+/-]+[^\[\]]*)\](?!\()')
CITE = re.compile(r'(?<![\w`@/.\[])@([\w][\w:.+/-]*\w)')

def bare_title(t):
    "`Preface` from Quarto's `# Preface {.unnumbered}`"
    return re.sub(r'^#+\s*|\s*\{[^}]*\}\s*$', '', str(t))

def opts(src):
    "The `#| key: value` lines at the top of a code cell"
    lines = []
    for l in src.split('\n'):
        if not l.startswith('#|'): break
        lines.append(l[2:].strip())
    try: d = yaml.safe_load('\n'.join(lines)) or {}
    except yaml.YAMLError: d = {}
    return d if isinstance(d, dict) else {}

def prose(f, s):
    "Apply `f` to the parts of Markdown `s` outside code"
    return ''.join(p if i % 2 else f(p) for i, p in enumerate(FENCE.split(s)))

DIVS = re.compile(r'(^```.*?^```[^\n]*$|^:{3,}[ \t]*\{[^\n]*callout.*?^:{3,}[ \t]*$)', re.M | re.S)
def outside_fences(f, s):
    "Apply `f` to the parts of Markdown `s` outside code blocks and callouts"
    return ''.join(p if i % 2 else f(p) for i, p in enumerate(DIVS.split(s)))

def signature(doc: str) -> str:
    "What show_doc writes, with a class called a class; a signature that says nothing is left out"
    doc = re.sub(r'(?s)```python\n.*?```', lambda m: re.sub(r'\[(`[^`]+`)\]\([^)]*\)', r'\1', m[0]), doc)  # no links in code
    doc = re.sub(r'```python\ndef \w+\(\n    \*args, \*\*kwargs\n\):\n```\n', '', doc)
    return re.sub(r'(?m)^def (_*[A-Z]\w*\()', r'class \1', doc)

class Book:
    def __init__(self, bib): self.labels, self.bib, self.errors = {}, bib, []

    def number(self, name, nb, chap):
        "First pass: number every label of a chapter"
        n = dict(eq=0, fig=0, tbl=0)
        def new(kind, label):
            n[kind] += 1
            self.add(label, kind, f'{chap}.{n[kind]}' if chap else str(n[kind]), name)
        sec = [0]*5
        for c in nb['cells']:
            s = text(c['source'])
            if c['cell_type'] == 'code':
                o = opts(s)
                if str(o.get('label', '')).startswith(('fig-', 'tbl-')): new(o['label'][:3], o['label'])
            elif c['cell_type'] == 'markdown':
                bare = re.sub(r'^```.*?^```', '', s, flags=re.M | re.S)
                for m in EQ.finditer(bare): new('eq', m[2])
                for m in TBL.finditer(bare): new('tbl', m[2])
                def head(m):
                    d, attrs = len(m[1]) - 2, m[3] or ''
                    if not chap or '.unnumbered' in attrs or re.search(r'\{-\}', attrs): return m[0]
                    sec[d] += 1; sec[d+1:] = [0]*(4-d)
                    num = '.'.join(str(x) for x in [chap, *sec[:d+1]])
                    l = re.search(r'#(sec-[\w-]+)', attrs)
                    if l: self.add(l[1], 'sec', num, name)
                    return f'{m[1]} {num} {m[2]} {attrs}'.rstrip()
                c['source'] = outside_fences(lambda p: HEAD.sub(head, p) if '.callout' not in p else p, s)

    def add(self, label, kind, num, name):
        if label in self.labels: self.errors.append(f'{name}: label {label} is used twice')
        self.labels[label] = (f'{KINDS[kind]} {num}', num, name)

    def link(self, label, name, short=False):
        if label not in self.labels:
            self.errors.append(f'{name}: @{label} names no label'); return f'**?@{label}**'
        t, num, where = self.labels[label]
        return f'[{num if short else t}]({"" if where == name else where}#{label}){{.quarto-xref}}'

    def cites(self, s, name, used):
        def one(key, fmt):
            if key not in self.bib: self.errors.append(f'{name}: @{key} is not in the bibliography'); return f'**?@{key}**'
            used.append(key) if key not in used else None
            return fmt(self.bib[key], key)
        def group(m):
            if not re.search(r'(?<!\w)-?@', m[1]) or re.match(r'-?@(eq|fig|tbl|sec)-', m[1].strip()): return m[0]
            out = []
            for part in m[1].split(';'):
                k = re.search(r'-?@([\w][\w:.+/-]*\w)', part)
                if not k: return m[0]
                out.append(one(k[1], lambda f, key: part.replace(k[0], f'[{surnames(f)}, {year(f)}](#ref-{key})').strip()))
            return '(' + '; '.join(out) + ')'
        s = CITE_GROUP.sub(group, s)
        return CITE.sub(lambda m: m[0] if re.match(r'(eq|fig|tbl|sec)-', m[1]) else
                        one(m[1], lambda f, key: f'[{surnames(f)} ({year(f)})](#ref-{key})'), s)

    def refs(self, s, name):
        return REF.sub(lambda m: ('' if m[1] and m[4] else m[1] or '') + self.link(m[3], name, bool(m[2])) + ('' if m[1] and m[4] else m[4] or ''), s)

    def equations(self, s, name):
        "Links for the equations that a docstring names, `eq-name`"
        return re.sub(r'\beq-[a-zA-Z][\w-]*', lambda m: self.link(m[0], name) if m[0] in self.labels else m[0], s)

    def resolve(self, name, nb, stored):
        "Second pass: write the numbers, the links and the list of references into a chapter"
        used = []
        for c in nb['cells']:
            s = text(c['source'])
            if c['cell_type'] == 'markdown':
                def eq(m):
                    num = self.labels[m[2]][1]
                    return f'::: {{#{m[2]}}}\n$$\n{m[1]}\n\\tag{{{num}}}\n$$\n:::'
                s = EQ.sub(eq, s)
                s = TBL.sub(lambda m: f': {self.labels[m[2]][0]}: {m[1]} {{#{m[2]}}}', s)
                s = re.sub(r'\]\(((?:\./)?[\w-]+\.ipynb)', lambda m: '](' + page(m[1]), s)
                s = prose(lambda p: self.refs(self.cites(p, name, used), name), s)
            elif c['cell_type'] == 'code':
                o = opts(s)
                lab = str(o.get('label', ''))
                if lab in self.labels and o.get('fig-cap'):
                    caps = o['fig-cap'] if isinstance(o['fig-cap'], list) else [o['fig-cap']]
                    t = self.labels[lab][0]
                    caps = [f'{t}{f"({chr(97+i)})" if len(caps) > 1 else ""}: {x}' for i, x in enumerate(caps)]
                    caps = [re.sub(r'\$([^$]+)\$', r'\\(\1\\)', x) for x in caps]
                    s = re.sub(r'^#\| *fig-cap:.*$', lambda m: '#| fig-cap: ' + json.dumps(caps if len(caps) > 1 else caps[0], ensure_ascii=False), s, flags=re.M)
                for o in c.get('outputs', []):
                    d = o.get('data', {})
                    if 'text/html' in d:  # matplotlib's players ask a CDN for icons; styles.css draws them
                        d['text/html'] = re.sub(r'<link[^>]*font-awesome[^>]*>', '', text(d['text/html']))
                    if 'application/vnd.jupyter.widget-view+json' in d: d.pop('text/plain', None)
                    if 'show_doc(' in s and 'text/markdown' in d: d['text/markdown'] = prose(lambda p: self.equations(p, name), signature(text(d['text/markdown'])))
            c['source'] = s
        base = stored['doc_host'] + stored['doc_baseurl'].rstrip('/') + '/'
        raw = json.dumps(nb, ensure_ascii=False).replace(base, '')      # doclinks, absolute in nbdev, made relative
        raw = re.sub(r'\[(`_[\w.]+`)\]\([^)]*\)', r'\1', raw)              # nbdev links private names, which have no place on a page
        raw = re.sub(r'\[\[(`[^`\]]+`)\]\([^)]*\)\]', r'[\1]', raw)       # and names within a link
        raw = re.sub(r'(\w+\.html#\w+)\.\w+', r'\1', raw)              # a method is documented with its class
        nb = json.loads(raw)
        if used:
            items = '\n\n'.join(f'::: {{#ref-{k}}}\n{full_ref(self.bib[k])}\n:::' for k in sorted(used, key=lambda k: (surnames(self.bib[k]), year(self.bib[k]))))
            for c in nb['cells']:
                if c['cell_type'] == 'markdown' and re.search(r'^::: *\{#refs\}\s*\n:::', c['source'], re.M):
                    c['source'] = re.sub(r'^::: *\{#refs\}\s*\n:::', lambda m: items, c['source'], flags=re.M); break
            else: nb['cells'].append(dict(cell_type='markdown', id='refs', metadata={}, source='## References {.unnumbered}\n\n' + items))
        return nb
