"After the site is built: mathematics and fonts from this site only, links from names to their pages, a description for every picture, and lines and pictures that fit a phone."
import base64, html, io, re, shutil
from pathlib import Path
from PIL import Image

CDN = re.compile(r'https://cdn\.jsdelivr\.net/npm/katex@[\d.]+/dist')

def copy_katex(katex, site):
    "KaTeX and its fonts into the site."
    k = site/'site_libs/katex'
    for d in ('contrib', 'fonts'): (k/d).mkdir(parents=True, exist_ok=True)
    for f in ('katex.min.css', 'katex.min.js', 'contrib/auto-render.min.js'): shutil.copy(katex/f, k/f)
    for f in (katex/'fonts').glob('*.woff2'): shutil.copy(f, k/'fonts')

def local_katex(text, up, have):
    "A page's references to KaTeX: to this site's copy, or none at all if there is no copy."
    if have: return CDN.sub(f'{up}site_libs/katex', text)
    return re.sub(r'<(?:link|script)[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>(?:</script>)?', '', text)

def link_names(text, symbols, here, up):
    "`name` in running text links to the page that explains it; not inside links, headings, code listings or summaries."
    out, depth = [], 0
    for tok in re.split(r'(<code>[\w.]+(?:\(\))?</code>|</?(?:a|pre|h\d|summary|title)\b[^>]*>)', text):
        if re.match(r'<(?:a|pre|h\d|summary|title)\b', tok): depth += 1
        elif re.match(r'</(?:a|pre|h\d|summary|title)>', tok): depth -= 1
        elif depth == 0 and (m := re.fullmatch(r'<code>([\w.]+)(?:\(\))?</code>', tok)) and m[1] in symbols:
            # of two such names the one on this page, else the first
            page, anchor = next((s for s in symbols[m[1]] if s.split('#')[0] == here),
                                symbols[m[1]][0]).split('#')
            tok = f'<a class="name" href="{"" if page == here else up + page}#{anchor}">{tok}</a>'
        out.append(tok)
    return ''.join(out)

def plain_names(text):
    "Links that nbdev wrote into the comments of signatures, where they would be read as they are written: only the names stay."
    return re.sub(r'<span class="co">.*?</span>', lambda m: re.sub(r'\[(`[\w.]+(?:\(\))?`)\]\([^)\s]*\)', r'\1', m[0]),
                  text)

def clean(s): return html.unescape(re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', '', s))).strip()

def plot_title(listing):
    "What plots say of themselves: the titles in the listing that drew them; what is put together when it runs is no title."
    piece, found = r'''[rRfF]{0,2}(?:'[^']*'|"[^"]*")''', []
    for m in re.finditer(rf'title\s*(?:=|\()\s*((?:{piece}\s*)+)', clean(listing)):
        parts = re.findall(r'''([rRfF]{0,2})(?:'([^']*)'|"([^"]*)")''', m[1])
        if not any('f' in kind.lower() and '{' in a+b for kind,a,b in parts):
            found.append(''.join(a+b for _,a,b in parts))
    return '; '.join(dict.fromkeys(found))

def describe_pictures(text, symbols=()):
    "Pictures without a description get the title of the plot, or the heading they stand under; a name from `symbols` is no heading."
    out, heading, listing = [], '', ''
    for tok in re.split(r'(<h[1-4]\b.*?</h[1-4]>|<div id="cell-[^"]*" class="cell">|<pre '
                        r'class="sourceCode.*?</pre>|<img\b[^>]*>)', text, flags=re.S):
        if re.match(r'<h[1-4]', tok): heading = heading if clean(tok) in symbols else clean(tok)
        elif tok.startswith('<div id="cell-'): listing = ''
        elif tok.startswith('<pre class="sourceCode'): listing = tok
        elif tok.startswith('<img') and not re.search(r'\balt="[^"]+"', tok):
            alt = html.escape(plot_title(listing) or f'Figure: {heading}', quote=True)
            tok = re.sub(r'\s*\balt="[^"]*"', '', tok).replace('<img', f'<img alt="{alt}"', 1)
        out.append(tok)
    return ''.join(out)

def wide_pictures(text, room=6):
    "Pictures drawn for more than `room` inches are marked, with their width in inches: a phone does not shrink them until nobody can read them."
    def mark(m):
        img = Image.open(io.BytesIO(base64.b64decode(m[2])))
        inches = img.width/float(img.info.get('dpi', (160,))[0] or 160)   # our plots have 160, where a palette cost them their note of it
        return m[0] if inches <= room else m[0].replace(
            '<img', f'<img style="--inches: {inches:.1f}"', 1).replace('class="', 'class="wide ', 1)
    return re.sub(r'<img\b([^>]*)\bsrc="data:image/(?:png|jpeg);base64,([^"]+)"[^>]*>', mark, text)

def hang_listing(body, most=40):
    "The lines of one listing that a narrow box may not hold, each in a span that knows by how many letters its continuation is indented."
    out, open_ = [], []
    for line in body.split('\n'):
        before = ''.join(open_)
        for tag in re.findall(r'</?\w+[^>]*>', line):     # colours that begin in one line and end in another
            if tag[1] == '/': open_.pop()
            else: open_.append(tag)
        said = html.unescape(re.sub(r'<[^>]+>', '', line))
        line = before + line + ''.join(f'</{re.match("<([a-z0-9]+)", t)[1]}>' for t in reversed(open_))
        n = len(said) - len(said.lstrip()) + 4
        out.append(f'<span class="long" style="--n: {n}">{line}</span>' if len(said) > most else line)
    return '\n'.join(out)

def hang(text):
    "Every listing and every printed output of a page, with `hang_listing`."
    return re.sub(r'(<pre\b[^>]*><code\b[^>]*>)(.*?)(</code></pre>)',
                  lambda m: m[1] + hang_listing(m[2]) + m[3], text, flags=re.S)

def label_controls(text):
    "Names for what assistive technology would otherwise read out as a bare symbol."
    text = text.replace('class="code-copy-button"><i', 'class="code-copy-button" aria-label="Copy to '
                        'clipboard"><i')
    text = text.replace('<nav class="quarto-secondary-nav">',
                        '<nav class="quarto-secondary-nav" aria-label="Where you are">')
    text = text.replace('<nav id="quarto-sidebar"', '<nav id="quarto-sidebar" aria-label="Pages"', 1)
    return re.sub(r'<nav id="TOC"', '<nav id="TOC" aria-label="On this page"', text, count=1)

def drop_web_fonts(site):
    "Style sheets that ask another host for a font stop asking."
    for c in site.rglob('*.css'):
        t = c.read_text(encoding='utf-8')
        n = re.sub(r'@import\s+(?:url\(\s*["\']?https?://fonts\.[^)]*\)|["\']https?://fonts\.[^"\']*["\'])[^;]*;?', '', t)
        if n != t: c.write_text(n, encoding='utf-8')

def polish(site, katex, symbols):
    "Every page of the built `site`; `katex` is the dist folder of the npm package, or None."
    if katex: copy_katex(katex, site)
    drop_web_fonts(site)
    for h in sorted(site.rglob('*.html')):
        rel = h.relative_to(site).as_posix()
        up = '../' * rel.count('/')
        text = local_katex(h.read_text(encoding='utf-8'), up, bool(katex))
        head, body = text.split('<main', 1) if '<main' in text else (text, '')
        body = describe_pictures(link_names(plain_names(body), symbols, rel, up), symbols)
        body = wide_pictures(hang(body))
        h.write_text(label_controls(head + '<main' + body if body else head), encoding='utf-8')

def foreign(site):
    "What a browser would fetch from another host."
    pat = r'<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)="(https?://[^"]+)"'
    return sorted({u for h in site.rglob('*.html') for tag in re.finditer(pat, h.read_text(encoding='utf-8'))
                   for u in [tag[1]]
                   if 'rel="canonical"' not in tag[0]})
