// Visit every page of the built site in Chromium and report what a reader would stumble over, as JSON on stdout.
// usage: node site.mjs BASE_URL OUT_DIR page.html…      (chromium: $CHROMIUM or /usr/bin/chromium)
import { chromium } from 'playwright-core';
import { createRequire } from 'node:module';
import fs from 'node:fs';

const [base, out, ...pages] = process.argv.slice(2);
const axe = fs.readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const args = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', headless: true, args });
const problems = [], note = (page, what, detail) => problems.push({ page, what, detail: String(detail).slice(0, 300) });

// A page that reports failed and foreign requests, console errors and exceptions.
async function open(name, options) {
  const context = await browser.newContext(options), page = await context.newPage();
  page.on('requestfailed', r => note(name, 'failed request', r.url()));
  page.on('response', r => r.status() >= 400 && note(name, 'failed request', `${r.status()} ${r.url()}`));
  page.on('request', r => /^https?:/.test(r.url()) && !r.url().startsWith(base) && note(name, 'foreign request', r.url()));
  page.on('console', m => m.type() === 'error' && note(name, 'console error', m.text()));
  page.on('pageerror', e => note(name, 'exception', e.message));
  await page.goto(`${base}/${name}`, { waitUntil: 'load' });
  await page.waitForTimeout(150);
  return { context, page };
}

// Pictures that did not load, formulas that were not set, duplicate ids, links.
const look = () => ({
  broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src.slice(0, 80)),
  nameless: [...document.images].filter(i => !i.alt).length,
  raw: [...document.querySelectorAll('.math')].filter(m => !m.querySelector('.katex') || m.querySelector('.katex-error')).map(m => m.textContent.slice(0, 80)),
  maths: document.querySelectorAll('.math').length,
  title: document.querySelector('h1')?.textContent ?? '',
  ids: [...document.querySelectorAll('[id]')].map(e => e.id),
  links: [...document.querySelectorAll('a[href]')].map(a => a.href),
  unset: (() => { const m = (document.querySelector('main') ?? document.body).cloneNode(true); m.querySelectorAll('pre, code, script, .math, .katex').forEach(e => e.remove()); return (m.textContent.match(/\]\([\w.\/-]+\.(?:ipynb|html)/g) ?? []).concat(m.textContent.match(/\$\$?[^$\n]{1,80}\\[a-z]+[^$\n]*\$|\\\(|\\\[/g) ?? []); })(),
});

// Formulas and their numbers do not cover one another.
const covered = () => [...document.querySelectorAll('.katex-html > .tag')].filter(t => {
  const r = t.getBoundingClientRect(); return [...t.parentElement.querySelectorAll(':scope > .base')].some(b => b.getBoundingClientRect().right > r.left + parseFloat(getComputedStyle(t).paddingLeft) + 1);
}).length;

// Serious violations that axe finds; in the dark only the colours are new.
async function accessible(page, name, mode) {
  const options = mode === 'dark' ? { runOnly: ['color-contrast'] } : { resultTypes: ['violations'] };
  const found = await page.evaluate(o => axe.run(document, o), options);
  for (const v of found.violations.filter(v => ['serious', 'critical'].includes(v.impact)))
    note(name, `axe ${mode}: ${v.id}`, `${v.nodes.length} × ${v.help}; first: ${v.nodes[0].html} ${v.nodes[0].any[0]?.message ?? ''}`);
}

// Lines of code and of output that run out of their box.
const cut = () => [...document.querySelectorAll('main pre')].filter(p => p.scrollWidth > p.clientWidth + 1).map(p => p.textContent.trim().slice(0, 60));

// Pictures of many panels that are too small to be read, at less than 50 pixels for each inch they were drawn in.
const small = () => [...document.querySelectorAll('main img.wide')].filter(i => i.clientWidth && i.clientWidth < 50*parseFloat(i.style.getPropertyValue('--inches'))).map(i => i.alt.slice(0, 60));

// What stands over the text while one scrolls lets none of it through, in light and dark.
const through = () => ['.quarto-secondary-nav', '#quarto-sidebar'].filter(s => getComputedStyle(document.querySelector(s)).backgroundColor !== getComputedStyle(document.body).backgroundColor);

const wider = () => [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > 361 && !e.closest('pre, .sd-table, .cell-output-display, .math')).slice(0, 2).map(e => e.outerHTML.slice(0, 90));

// One page, three ways: light, dark, and on a phone.
async function visit(name) {
  const { context, page } = await open(name, { viewport: { width: 1300, height: 900 }, colorScheme: 'light' });
  const shot = kind => page.screenshot({ path: `${out}/${name.replaceAll('/', '_')}.${kind}.png` });
  const s = await page.evaluate(look);
  s.broken.forEach(b => note(name, 'broken picture', b));
  if (s.nameless) note(name, 'pictures without description', s.nameless);
  s.raw.forEach(r => note(name, 'formula not set', r));
  s.unset.forEach(r => note(name, 'TeX or a raw link in the text', r));
  if (!s.title || s.title.startsWith('#')) note(name, 'title', s.title);
  await page.evaluate(axe);
  const under = await page.evaluate(covered);
  if (under) note(name, 'formulas under their numbers', under);
  const over = async at => { for (const l of await page.evaluate(cut)) note(name, `cut off at ${at} px`, l); };
  await over(1300);
  await accessible(page, name, 'light'); await shot('light');
  await page.emulateMedia({ colorScheme: 'dark' });
  await page.waitForFunction(() => document.documentElement.classList.contains('quarto-dark')); await page.waitForTimeout(200);
  await accessible(page, name, 'dark'); await shot('dark');
  await page.emulateMedia({ colorScheme: 'light' }); await page.setViewportSize({ width: 360, height: 740 }); await page.waitForTimeout(600);
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  if (width > 360) note(name, 'scrolls sideways at 360 px', `${width} ${await page.evaluate(wider)}`);
  await over(360);
  for (const l of await page.evaluate(small)) note(name, 'too small to read at 360 px', l);
  await shot('phone');
  await context.close();
  return s;
}

const seen = {}, files = new Set();
for (const name of pages) seen[name] = await visit(name);

// Every internal link leads to a page and an anchor that exist.
for (const [name, s] of Object.entries(seen)) for (const link of new Set(s.links)) {
  if (!link.startsWith(base)) continue;
  const [target, hash] = decodeURIComponent(link.slice(base.length + 1)).split('#'), page = target.split('?')[0] || 'index.html';
  if (!(page in seen)) { if (/\.html$|^$/.test(page)) note(name, 'broken link', link); else files.add(link.split('#')[0]); continue; }
  if (hash && !seen[page].ids.includes(hash)) note(name, 'broken anchor', link);
}

// And every other file of the site that a page links to is there.
for (const f of files) { const r = await fetch(f, { method: 'HEAD' }).catch(e => ({ status: e.message })); if (r.status !== 200) note('site', 'broken link', `${r.status} ${f}`); }

// Search answers without a server.
async function search(word) {
  const { context, page } = await open('index.html', { viewport: { width: 1300, height: 900 } });
  await page.fill('.smalldocs-search input', word);
  await page.waitForSelector('.search-result, .search-none', { timeout: 5000 });
  const first = await page.locator('.search-result').first().getAttribute('href').catch(() => null);
  await page.screenshot({ path: `${out}/search.png` });
  await context.close();
  return first;
}

// The curtain follows the keyboard, the toggle turns the page dark.
async function hands() {
  const { context, page } = await open('index.html', { viewport: { width: 1300, height: 900 }, colorScheme: 'light' });
  const curtain = await page.locator('.curtain').count();
  let moved = null;
  if (curtain) {
    const at = () => page.evaluate(() => getComputedStyle(document.querySelector('.curtain')).getPropertyValue('--at'));
    const before = await at();
    await page.locator('.curtain input').first().focus();
    for (let i = 0; i < 5; i++) await page.keyboard.press('ArrowRight');
    moved = before !== await at();
  }
  const shade = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await shade();
  await page.locator('.quarto-color-scheme-toggle').first().click(); await page.waitForTimeout(200);
  const dark = await shade();
  await context.close();
  return { curtain, moved, toggles: light !== dark };
}

// On phones and tablets: the bar that stays in sight hides what is under it, and the menu opens below it, from its first entry to its last.
async function narrow(name, width) {
  const { context, page } = await open(name, { viewport: { width, height: 740 }, colorScheme: 'light' });
  const clear = async scheme => { for (const s of await page.evaluate(through)) note(name, `text shows through at ${width} px, ${scheme}`, s); };
  await page.evaluate(() => scrollTo({ top: 700, behavior: 'instant' })); await page.waitForTimeout(300);
  await clear('light');
  await page.locator('.quarto-btn-toggle').first().click(); await page.waitForTimeout(500);
  const menu = await page.evaluate(() => {
    const s = document.querySelector('#quarto-sidebar'), links = [...s.querySelectorAll('a.sidebar-link')].filter(a => a.offsetParent);
    const first = links[0].getBoundingClientRect().top; s.scrollTop = s.scrollHeight;
    return { first, below: document.querySelector('#quarto-header').getBoundingClientRect().bottom, last: links.at(-1).getBoundingClientRect().bottom };
  });
  if (menu.first < menu.below - 1) note(name, `the menu lies under the header at ${width} px`, JSON.stringify(menu));
  if (menu.last > 740) note(name, `the menu does not scroll to its end at ${width} px`, JSON.stringify(menu));
  await page.screenshot({ path: `${out}/menu_${width}.png` });
  await page.emulateMedia({ colorScheme: 'dark' }); await page.waitForFunction(() => document.documentElement.classList.contains('quarto-dark')); await page.waitForTimeout(200);
  await clear('dark');
  await context.close();
}

// A stranger's way, by clicking what is written: from the home page through links with these texts to a page that shows `want`.
async function walk(way, want) {
  const { context, page } = await open('index.html', { viewport: { width: 1300, height: 900 } });
  for (const text of way) {
    await page.locator('main a, #TOC a, #quarto-sidebar a').filter({ hasText: text }).first().click({ timeout: 5000 });
    await page.waitForLoadState('load'); await page.waitForTimeout(100);
  }
  const end = { clicks: way.length, at: page.url().slice(base.length + 1), seen: (await page.locator('main').innerText()).includes(want) };
  const hash = end.at.split('#')[1];
  end.near = hash ? await page.waitForFunction(h => { const e = document.getElementById(h); return !!e && Math.abs(e.getBoundingClientRect().top) < innerHeight; }, decodeURIComponent(hash), { timeout: 5000 }).then(() => true, () => false) : true;   // it scrolls smoothly
  await page.screenshot({ path: `${out}/walk_${way.at(-1).replace(/\W+/g, '_')}.png` });
  await context.close();
  return end;
}

for (const [name, width] of [['index.html', 360], [pages.find(p => p === 'matching.html') ?? pages[0], 360], ['index.html', 768]]) await narrow(name, width);
const words = (process.env.SEARCH || 'match_timestep').split(',');
const walks = {}; for (const [k, [way, want]] of Object.entries(JSON.parse(process.env.WALKS || '{}'))) walks[k] = await walk(way, want).catch(e => ({ error: e.message.slice(0, 300) }));
const found = {}; for (const w of words) found[w] = await search(w);
const result = { pages: pages.length, maths: Object.fromEntries(Object.entries(seen).map(([k, s]) => [k, s.maths])), found, walks, hands: await hands(), problems };
console.log(JSON.stringify(result, null, 1));
await browser.close();
