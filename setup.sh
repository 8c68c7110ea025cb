#!/bin/bash
# Builds the environment of this clone, for `make`: setup.sh VENV PYTHON EXTRAS, such as setup.sh .venv python3 data,dashboard
set -euo pipefail

venv=$1 python=$2 extras=${3// /,}
bin=$venv/bin
torch=$(sed -n 's/^  "\(torch==[^"]*\)",$/\1/p' pyproject.toml)
log=$(mktemp)
running=
began=$SECONDS
trap 'rm -f "$log"' EXIT
# Bash starts commands in the background with SIGINT ignored.
trap '[[ -z $running ]] || kill "$running" 2>/dev/null; echo; exit 130' INT TERM

main() {
  check_python
  check_extras
  [[ -x $bin/python ]] || step "the environment $venv" make_venv
  choose_installer
  echo "Installing into $venv ($("$bin/python" -V)) with $tool${why:+: $why}."
  # torch comes first and by its exact version, so that what the rest asks for finds it there and leaves its build alone.
  if ! has_torch; then
    warn_of_cuda
    step "$torch" "${installer[@]}" "$torch"
  fi
  step "Shardyard with $extras" "${installer[@]}" -e ".[$extras]"
  # pip alone would do it one file at a time, uv not at all, and then every first import would.
  step "bytecode" compile
  echo "Ready after $((SECONDS - began)) s: $(count) distributions, $(du -sm "$venv" | cut -f1) MB."
}

check_python() {
  if [[ -z $python ]] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    fail "Shardyard needs Python 3.11 or newer; found $("${python:-false}" -V 2>/dev/null || echo none)." \
      "Install python3.11, or name one: make setup PYTHON=/path/to/python3"
  fi
  "$python" -c 'import ensurepip, venv' 2>/dev/null || command -v uv >/dev/null ||
    fail "$python lacks the module venv. On Debian and Ubuntu: apt-get install python3-venv"
}

check_extras() {
  local known extra
  known=$(sed -n '/^\[project.optional-dependencies\]/,/^\[project.scripts\]/s/^\([a-z]*\) = .*/\1/p' pyproject.toml | xargs)
  for extra in ${extras//,/ }; do
    [[ " $known " == *" $extra "* ]] || fail "There is no extra '$extra'; pyproject.toml has ${known// /, }."
  done
}

make_venv() {
  if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv "$venv"
  else
    uv venv --python "$python" "$venv"
  fi
}

# uv does not read where pip is told to look: it would pass by a CPU build of torch, or a mirror, that only pip knows.
choose_installer() {
  why=
  if command -v uv >/dev/null && { uv_is_told || ! pip_is_told; }; then
    tool=uv installer=("$(command -v uv)" pip install --python "$bin/python")
  elif "$bin/python" -m pip --version >/dev/null 2>&1; then
    tool=pip installer=("$bin/python" -m pip --disable-pip-version-check install --no-compile)
    ! command -v uv >/dev/null || why="it is configured with an index of its own, which uv does not read"
  else
    fail "$venv has no pip, and pip is told of an index that uv does not read. Name it for uv: UV_DEFAULT_INDEX," \
      "UV_INDEX or UV_FIND_LINKS."
  fi
}

uv_is_told() {
  [[ -n ${UV_DEFAULT_INDEX:-}${UV_INDEX:-}${UV_INDEX_URL:-}${UV_EXTRA_INDEX_URL:-}${UV_FIND_LINKS:-} ]] ||
    [[ -n ${UV_TORCH_BACKEND:-}${UV_CONFIG_FILE:-} ]] ||
    [[ -e ${XDG_CONFIG_HOME:-$HOME/.config}/uv/uv.toml || -e /etc/uv/uv.toml ]]
}

pip_is_told() {
  [[ -n ${PIP_INDEX_URL:-}${PIP_EXTRA_INDEX_URL:-}${PIP_FIND_LINKS:-}${PIP_NO_INDEX:-} ]] ||
    "$bin/python" -m pip config list 2>/dev/null | grep -qE '\.(index-url|extra-index-url|find-links|no-index)='
}

has_torch() {
  [[ $("$bin/python" -c 'from importlib.metadata import version as v; print(v("torch").partition("+")[0])' \
    2>/dev/null) == "${torch#torch==}" ]]
}

warn_of_cuda() {
  if ! command -v nvidia-smi >/dev/null && ! pip_is_told && ! uv_is_told; then
    echo "  No GPU is seen, and the torch of PyPI for Linux brings CUDA, several GB. For a CPU build stop here (Ctrl-C) and" \
      "set UV_TORCH_BACKEND=cpu (with uv), or PIP_EXTRA_INDEX_URL to the CPU index that pytorch.org names (with pip)."
  fi
}

compile() {
  "$bin/python" -W ignore -m compileall -q -j 0 "$(site)" platform || true # templates among the files are no Python
}

site() {
  "$bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'
}

count() {
  find "$(site)" -maxdepth 1 -name '*.dist-info' | wc -l
}

# step LABEL COMMAND…: a line with the seconds that it took; in a terminal also what it is at.
step() {
  local label=$1 start=$SECONDS
  shift
  [[ -t 1 ]] || printf '  %-44s' "$label"
  "$@" >"$log" 2>&1 &
  running=$!
  while [[ -t 1 ]] && kill -0 "$running" 2>/dev/null; do
    printf '\r\033[K  %-44s %4d s  %.60s' "$label" $((SECONDS - start)) "$(tail -n 1 "$log" | tr -d '\r')"
    sleep 0.5
  done
  if ! wait "$running"; then
    echo
    explain "$label"
  fi
  running=
  [[ -t 1 ]] && printf '\r\033[K  %-44s' "$label"
  printf ' %4d s\n' $((SECONDS - start))
}

explain() {
  local network='name resolution|not known|NewConnection|Connection (refused|reset|timed out|error)|[Rr]ead timed out'
  network+='|Max retries|Network is unreachable|No route to host|dns error|[Ff]ailed to (fetch|lookup)|ProxyError|[Tt]unnel'
  grep -E '^ *(ERROR|error:|×|╰|├|Caused by)' "$log" | tail -n 6 >&2 || tail -n 6 "$log" >&2
  if grep -q 'No space left' "$log"; then
    fail "$1 was not installed: the disk is full. $venv takes 2 to 3 GB, and packages are unpacked in \$TMPDIR."
  elif grep -qE "$network" "$log"; then
    fail "$1 was not installed: the package index cannot be reached. Behind a proxy set HTTPS_PROXY; for an index or a" \
      "folder of wheels of your own set PIP_INDEX_URL, PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS (for uv UV_DEFAULT_INDEX," \
      "UV_INDEX or UV_FIND_LINKS). Then run the same command again; what is installed is kept."
  fi
  fail "$1 was not installed; the lines above say why. Run the same command again once that is mended."
}

fail() {
  echo "$*" >&2
  exit 1
}

main
