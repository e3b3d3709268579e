#!/usr/bin/env bash
# Makes .venv in the repository's root: the pinned packages, then this project in editable form.
# Complete once and for all: a stamp tells a finished set-up from an interrupted one, which is done
# again from the start. Run it as `make setup`; nothing else on the machine is changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly venv=.venv
readonly lock=requirements/lock-cpu.txt
readonly stamp=$venv/.lock-stamp
readonly log=$venv/setup.log
readonly torch_index=https://download.pytorch.org/whl/cpu

fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

# The first Python on the path that the locked packages support.
find_python() {
  local candidate
  for candidate in python3 python3.12 python3.11 /usr/bin/python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
      2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
  fail "needs Python 3.11 or 3.12, found $(python3 --version 2>&1 || true);" \
    "install one of them so that it is called python3, python3.12 or python3.11"
}

# stage TEXT COMMAND...: run quietly into a fresh log, show the elapsed seconds, and on failure the log's end.
stage() {
  local text=$1 start=$SECONDS pid
  shift
  : >"$log"
  set -m # a process group of its own, which an interrupt can end as a whole
  "$@" >"$log" 2>&1 &
  pid=$!
  set +m
  trap 'kill -- "-$pid" 2>/dev/null; exit 130' INT TERM HUP
  while kill -0 "$pid" 2>/dev/null; do
    show_progress "$text" "$((SECONDS - start))"
    sleep 1
  done
  trap - INT TERM HUP
  if wait "$pid"; then
    printf '%s%s: done in %d s\n' "$clear_line" "$text" "$((SECONDS - start))"
  else
    printf '%s%s: failed after %d s, see %s\n' "$clear_line" "$text" "$((SECONDS - start))" "$log" >&2
    tail -n 15 "$log" >&2
    return 1
  fi
}

# On a terminal one line that counts; elsewhere a line every half minute.
show_progress() {
  local text=$1 elapsed_s=$2 doing
  doing=$(sed -nE 's/^Collecting ([^= ]+).*/, fetching \1/p; s/^Installing .*/, unpacking/p' "$log" |
    tail -n 1)
  if [ -n "$clear_line" ]; then
    printf '%s%s: %d s%s' "$clear_line" "$text" "$elapsed_s" "$doing"
  elif [ "$elapsed_s" -gt 0 ] && [ $((elapsed_s % 30)) -eq 0 ]; then
    printf '%s: %d s%s\n' "$text" "$elapsed_s" "$doing"
  fi
}

make_environment() {
  rm -rf "$venv"
  "$python" -m venv "$venv" || fail "could not make $venv; on Debian: apt-get install python3-venv"
}

install_packages() {
  local count
  count=$(grep -c '==' "$lock")
  stage "installing PyTorch for CPUs" install_torch
  stage "installing $count packages, 2.9 GB on disk" pip_install -r "$lock"
}

# The plain way first: the machine may have the CPU build at hand. Elsewhere only PyTorch's own index
# has it, which is then asked for this one package.
install_torch() {
  local torch
  torch=$(grep '^torch==' "$lock")
  pip_install "$torch" || pip_install "$torch" --extra-index-url "$torch_index"
}

pip_install() {
  "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps "$@"
}

clear_line=''
if [ -t 1 ]; then clear_line=$'\r\033[K'; fi

# The folder's path is part of it: a virtual environment does not survive being moved.
packages_hash=$({ cat "$lock"; pwd -P; } | sha256sum | cut -d' ' -f1)
project_hash=$(cat pyproject.toml deploy/setup.sh | sha256sum | cut -d' ' -f1)

exec 9>.venv.lock
if ! flock --nonblock 9; then
  echo "setup: waiting for the set-up that is running"
  flock 9 # and then finds it complete
fi

installed=$(cat "$stamp" 2>/dev/null || true)
if [ "$installed" = "$packages_hash $project_hash" ]; then exit 0; fi

if [ "${installed%% *}" != "$packages_hash" ]; then
  python=$(find_python)
  make_environment
  install_packages
fi
echo "$packages_hash" >"$stamp"
stage "installing expertmesh itself" pip_install --no-build-isolation --editable .
echo "$packages_hash $project_hash" >"$stamp"
echo "setup: complete; packages are in $venv"
