#!/usr/bin/env bash
# Builds the documentation into site/: docs/ and the pages of scripts/docs_pages.py, by mkdocs. A link, an anchor or a
# reference that leads nowhere is an error. It makes an environment of its own, .venv-docs, without torch; after that it
# needs no network. Arguments go to `mkdocs build`. PYTHON names the interpreter (default: python3, 3.11 or newer).
set -euo pipefail
cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

requirements=scripts/docs-requirements.txt
stamp=.venv-docs/stamp
if [[ ! -f $stamp || $(<"$stamp") != "$(cksum "$requirements")" ]]; then
  echo "Making .venv-docs with what $requirements names"
  "${PYTHON:-python3}" -m venv --clear .venv-docs
  .venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r "$requirements"
  cksum "$requirements" >"$stamp"
fi

unset PYTHONPATH # which might hold another mkdocs
NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict "$@" # with --quiet it would count no warnings
echo "site/index.html: $(find site -name '*.html' | wc -l) pages"
