// `explore()` in a real JupyterLab, in Chromium: what changes when the sliders move, and which requests leave the machine, as JSON on stdout.
// usage: node explore.mjs LAB_URL SCREENSHOT.png      (chromium: $CHROMIUM or /usr/bin/chromium)
import { chromium } from 'playwright-core';

const [address, shot] = process.argv.slice(2), home = new URL(address).host;
const args = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', headless: true, args });
const page = await (await browser.newContext({ viewport: { width: 1400, height: 1100 } })).newPage();
const foreign = [], errors = [];
const look = url => { const u = new URL(url); if (/^(https?|wss?):$/.test(u.protocol) && u.host !== home) foreign.push(url); };
page.on('request', r => look(r.url()));
page.on('websocket', w => look(w.url()));
page.on('pageerror', e => errors.push(e.message));

await page.goto(address, { waitUntil: 'load' });
await page.waitForSelector('.jp-NotebookPanel .jp-Cell', { timeout: 90000 });
await page.waitForSelector('.jp-Notebook-ExecutionIndicator[data-status=idle]', { timeout: 90000 });
await page.locator('.jp-NotebookPanel .jp-Cell').first().click();
await page.getByRole('menuitem', { name: 'Run', exact: true }).click();
await page.getByRole('menuitem', { name: 'Run All Cells', exact: true }).click();
await page.waitForSelector('.jupyter-widgets .noUi-handle', { timeout: 120000 });
const shown = () => [...document.querySelectorAll('.jp-OutputArea-output img')].filter(i => i.naturalWidth).length >= 7;
await page.waitForFunction(shown, null, { timeout: 60000 }).catch(async e => { await page.screenshot({ path: shot }); throw new Error('no seven pictures: ' + (await page.locator('.jp-OutputArea').allInnerTexts()).join('\n').slice(0, 2000)); });

// The seven pictures by what they show (in the order of the panel), as the sources that the browser displays.
const names = ['x', 'y', 'forward', 'estimate', 'curtain', 'curve', 'usage'];
const pixels = () => page.evaluate(async names => {
  const sum = async i => { const b = new Uint8Array(await (await fetch(i.src)).arrayBuffer()); let h = 0; for (const v of b) h = (h * 31 + v) >>> 0; return `${i.naturalWidth}x${i.naturalHeight}:${h}`; };
  const images = [...document.querySelectorAll('.jp-OutputArea-output img')];
  return Object.fromEntries(await Promise.all(images.slice(0, 7).map(async (i, n) => [names[n], await sum(i)])));
}, names);
// What `act` changes; waits until a picture of `wait` is another one, then until nothing moves any more.
async function changes(act, wait) {
  const before = await pixels(), start = Date.now(); let now = before, last;
  await act();
  while (now[wait] === before[wait] && Date.now() - start < 30000) { await page.waitForTimeout(100); now = await pixels(); }
  do { last = now; await page.waitForTimeout(1500); await page.waitForSelector('.jp-Notebook-ExecutionIndicator[data-status=idle]', { timeout: 30000 }); now = await pixels(); } while (names.some(n => now[n] !== last[n]));
  return names.filter(n => now[n] !== before[n]);
}
const slider = label => page.locator('.widget-slider').filter({ has: page.locator('.widget-label', { hasText: new RegExp(`^${label}$`) }) }), handle = label => slider(label).locator('.noUi-handle');
const press = async (label, key, times) => { await handle(label).focus(); for (let i = 0; i < times; i++) await page.keyboard.press(key); };
const readout = label => slider(label).locator('.widget-readout').innerText();

const result = { t_before: await readout('t') };
result.t = await changes(() => press('t', 'ArrowRight', 6), 'forward');
result.t_after = await readout('t');
result.curtain = await changes(() => press('curtain', 'ArrowLeft', 20), 'curtain');
result.damage = await changes(() => page.locator('.widget-dropdown', { hasText: 'damage' }).locator('select').selectOption('hazy'), 'y');
result.photo = await changes(() => page.locator('.widget-dropdown', { hasText: 'picture' }).locator('select').selectOption('coffee'), 'x');
const chooser = async () => { const [c] = await Promise.all([page.waitForEvent('filechooser'), page.locator('.widget-upload').first().click()]); await c.setFiles(process.env.UPLOAD); };
result.upload = await changes(chooser, 'x');
await page.locator('.jupyter-widgets').first().scrollIntoViewIfNeeded();
await page.screenshot({ path: shot });
await browser.close();
console.log(JSON.stringify({ ...result, foreign, errors }, null, 1));
