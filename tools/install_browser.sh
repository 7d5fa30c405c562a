#!/usr/bin/env bash
# What the site and its tests need beside Python: KaTeX, axe and playwright from npm (exact versions in package-lock.json), and Debian's Chromium.
# Fetches what is missing where it can; says what it could not get and succeeds all the same, since the tests then skip and the site builds with plain TeX.
cd "$(dirname "$0")/.."
note() { echo "note: $*" >&2; }
need() { command -v "$1" >/dev/null || want+=("$2"); }
want=()
need npm npm; need node nodejs
[ -x "${CHROMIUM:-/usr/bin/chromium}" ] || want+=(chromium)
if [ ${#want[@]} -gt 0 ]; then
  root=""; [ "$(id -u)" = 0 ] || root="sudo -n"
  if command -v apt-get >/dev/null; then { $root apt-get update -qq && $root apt-get install -y -qq "${want[@]}"; } >/dev/null 2>&1 || note "could not install: ${want[*]}"
  else note "please install: ${want[*]}"; fi
fi
if command -v npm >/dev/null; then
  [ -d node_modules/katex ] && [ -d node_modules/axe-core ] && [ -d node_modules/playwright-core ] || npm ci --no-audit --no-fund --silent || note "npm ci failed (offline?): formulas stay TeX, browser tests are skipped"
fi
exit 0
