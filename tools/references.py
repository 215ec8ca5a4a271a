"""What Quarto resolves and smalldocs does not.

Numbers of equations, figures, tables and sections, references to them, and citations.
"""
import codecs, json, re
from pathlib import Path

import latexcodec  # lets strings be decoded from LaTeX
import yaml
from pybtex.database import parse_file

KINDS = dict(eq='Equation', fig='Figure', tbl='Table', sec='Section')
PREFIX = re.compile(r'^\d+[a-zA-Z0-9]*_')  # what nbdev takes off a page's name

def text(x): return ''.join(x) if isinstance(x, list) else (x or '')

def page(name):
    "schedule.ipynb of 01_schedule.ipynb"
    return PREFIX.sub('', Path(name).name.lower())

# ---------------------------------------------------------------- bibliography
def read_bib(path: Path) -> dict:
    "key -> entry of a BibTeX file"
    return dict(parse_file(str(path), 'bibtex').entries)

def latex(s: str) -> str:
    "A BibTeX string as plain text"
    return re.sub(r'[{}]', '', codecs.decode(s, 'ulatex'))

def surnames(e) -> str:
    "`Ho et al.` from an entry's authors"
    names = [' '.join(p.last_names) for p in e.persons.get('author', [])] or ['?']
    if len(names) > 2: return latex(f'{names[0]} et al.')
    return latex(' and '.join(names))

def year(e) -> str: return e.fields.get('year', 'n.d.')

def full_ref(e) -> str:
    "An entry of the list of references, in Markdown"
    f = e.fields
    names = [(p.last_names, p.first_names + p.middle_names) for p in e.persons.get('author', [])]
    authors = latex('; '.join(f"{' '.join(last)}, {' '.join(first)}" for last, first in names))
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
REFS = re.compile(r'^::: *\{#refs\}\s*\n:::', re.M)
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

CODE_BLOCK = re.compile(r'^```.*?^```', re.M | re.S)
EQ_NAME = re.compile(r'\beq-[a-zA-Z](?:[\w-]*\w)?')
PRINTED = re.compile(r'(?s)(<code class="sourceCode python">)(.*?)(</code>)')

class Book:
    def __init__(self, bib): self.labels, self.bib, self.errors = {}, bib, []

    def number(self, name, nb, chapter):
        "First pass: number every label of a chapter, `chapter` (None in the front matter)"
        count, sections = dict(eq=0, fig=0, tbl=0), [0]*5

        def new(kind, label):
            count[kind] += 1
            self.add(label, kind, f'{chapter}.{count[kind]}' if chapter else str(count[kind]), name)

        def head(m):
            "A heading with its number"
            depth, attributes = len(m[1]) - 2, m[3] or ''
            if not chapter or '.unnumbered' in attributes or '{-}' in attributes: return m[0]
            sections[depth] += 1
            sections[depth+1:] = [0]*(4 - depth)
            number = '.'.join(str(x) for x in [chapter, *sections[:depth+1]])
            label = re.search(r'#(sec-[\w-]+)', attributes)
            if label: self.add(label[1], 'sec', number, name)
            return f'{m[1]} {number} {m[2]} {attributes}'.rstrip()

        for c in nb['cells']:
            s = text(c['source'])
            if c['cell_type'] == 'code':
                label = str(opts(s).get('label', ''))
                if label.startswith(('fig-', 'tbl-')): new(label[:3], label)
            elif c['cell_type'] == 'markdown':
                bare = CODE_BLOCK.sub('', s)
                for m in EQ.finditer(bare): new('eq', m[2])
                for m in TBL.finditer(bare): new('tbl', m[2])
                numbered = lambda part: part if '.callout' in part else HEAD.sub(head, part)
                c['source'] = outside_fences(numbered, s)

    def add(self, label, kind, num, name):
        if label in self.labels: self.errors.append(f'{name}: label {label} is used twice')
        self.labels[label] = (f'{KINDS[kind]} {num}', num, name)

    def link(self, label, name, short=False):
        if label not in self.labels:
            self.errors.append(f'{name}: @{label} names no label')
            return f'**?@{label}**'
        t, num, where = self.labels[label]
        there = '' if where == name else where
        return f'[{num if short else t}]({there}#{label}){{.quarto-xref}}'

    def cites(self, s, name, used):
        "Citations as links; their keys are added to `used`"
        def one(key, fmt):
            if key not in self.bib:
                self.errors.append(f'{name}: @{key} is not in the bibliography')
                return f'**?@{key}**'
            if key not in used: used.append(key)
            return fmt(self.bib[key], key)

        def group(m):
            if not re.search(r'(?<!\w)-?@', m[1]): return m[0]
            if re.match(r'-?@(eq|fig|tbl|sec)-', m[1].strip()): return m[0]
            out = []
            for part in m[1].split(';'):
                k = re.search(r'-?@([\w][\w:.+/-]*\w)', part)
                if not k: return m[0]
                out.append(one(k[1], lambda e, key: part.replace(
                    k[0], f'[{surnames(e)}, {year(e)}](#ref-{key})').strip()))
            return '(' + '; '.join(out) + ')'

        def single(m):
            if re.match(r'(eq|fig|tbl|sec)-', m[1]): return m[0]
            return one(m[1], lambda e, key: f'[{surnames(e)} ({year(e)})](#ref-{key})')

        return CITE.sub(single, CITE_GROUP.sub(group, s))

    def refs(self, s, name):
        "References to labels as links; the brackets of `[@eq-a]` go"
        def ref(m):
            before, after = ('', '') if m[1] and m[4] else (m[1] or '', m[4] or '')
            return before + self.link(m[3], name, bool(m[2])) + after
        return REF.sub(ref, s)

    def link_code(self, html, name):
        "A page with links on the equations that its code names in comments and docstrings"
        def link(m):
            if m[0] not in self.labels: return m[0]
            title, _, where = self.labels[m[0]]
            there = '' if where == name else Path(where).with_suffix('.html')
            return f'<a href="{there}#{m[0]}" title="{title}">{m[0]}</a>'
        return PRINTED.sub(lambda m: m[1] + EQ_NAME.sub(link, m[2]) + m[3], html)

    def resolve(self, name, nb, stored):
        "Second pass: write the numbers, the links and the list of references into a chapter"
        used = []
        for c in nb['cells']:
            c['source'] = text(c['source'])
            if c['cell_type'] == 'markdown': c['source'] = self.markdown(c['source'], name, used)
            elif c['cell_type'] == 'code': self.caption(c, name)
            for output in c.get('outputs', []): clean_output(output.get('data', {}))
        base = stored['doc_host'] + stored['doc_baseurl'].rstrip('/') + '/'
        raw = json.dumps(nb, ensure_ascii=False)
        for pattern, replacement in [
                (re.escape(base), ''),                            # links of nbdev's made relative
                (r'\[(`_[\w.]+`)\]\([^)]*\)', r'\1'),             # private names have no place
                (r'\[\[(`[^`\]]+`)\]\([^)]*\)\]', r'[\1]'),       # names within a link
                (r'\b(\w+\.html#\w+)\.\w+', r'\1')]:                # a method stands in its class
            raw = re.sub(pattern, replacement, raw)
        nb = json.loads(raw)
        if used: self.list_references(nb, used)
        return nb

    def markdown(self, s, name, used):
        def equation(m):
            return f'::: {{#{m[2]}}}\n$$\n{m[1]}\n\\tag{{{self.labels[m[2]][1]}}}\n$$\n:::'
        s = EQ.sub(equation, s)
        s = TBL.sub(lambda m: f': {self.labels[m[2]][0]}: {m[1]} {{#{m[2]}}}', s)
        s = re.sub(r'\]\(((?:\./)?[\w-]+\.ipynb)', lambda m: '](' + page(m[1]), s)
        return prose(lambda part: self.refs(self.cites(part, name, used), name), s)

    def caption(self, cell, name):
        "The number of a figure, and what its caption refers to, in the caption of a cell"
        s = cell['source']
        o = opts(s)
        label, captions = str(o.get('label', '')), o.get('fig-cap')
        if not captions: return
        if not isinstance(captions, list): captions = [captions]
        captions = [self.refs(re.sub(r'\$([^$]+)\$', r'\\(\1\\)', x), name) for x in captions]
        if label in self.labels:
            title = self.labels[label][0]
            letters = [f'({chr(97 + i)})' for i in range(len(captions))] if captions[1:] else ['']
            captions = [f'{title}{letter}: {x}' for letter, x in zip(letters, captions)]
        value = json.dumps(captions if len(captions) > 1 else captions[0], ensure_ascii=False)
        line = '#| fig-cap: ' + value
        cell['source'] = re.sub(r'^#\| *fig-cap:.*$', lambda m: line, s, flags=re.M)

    def list_references(self, nb, used):
        "The list of what was cited, where a chapter has a place for it, else at its end"
        keys = sorted(used, key=lambda k: (surnames(self.bib[k]), year(self.bib[k])))
        items = '\n\n'.join(f'::: {{#ref-{k}}}\n{full_ref(self.bib[k])}\n:::' for k in keys)
        for c in nb['cells']:
            if c['cell_type'] == 'markdown' and REFS.search(c['source']):
                c['source'] = REFS.sub(lambda m: items, c['source'])
                return
        source = '## References {.unnumbered}\n\n' + items
        nb['cells'].append(dict(cell_type='markdown', id='refs', metadata={}, source=source))

def clean_output(data: dict):
    "Players ask a CDN for icons (styles.css draws them); a widget needs no text beside it"
    if 'text/html' in data:
        data['text/html'] = re.sub(r'<link[^>]*font-awesome[^>]*>', '', text(data['text/html']))
    if 'application/vnd.jupyter.widget-view+json' in data: data.pop('text/plain', None)
