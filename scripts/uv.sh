# Sourced in the checkout's root: sets `python`, and `uv`, which is installed into .uv where there is none.
python=$(command -v python3) || { echo "setup: python3 (3.11 or newer) is needed: install it and run scripts/setup again" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "setup: $("$python" --version) is too old: segnode needs Python 3.11 or newer" >&2; exit 2; }

# A hospital's mirror that pip is told of is the mirror for uv as well.
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
[ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"
export UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy

find_uv() {
  command -v uv && return
  [ -x .uv/bin/uv ] && { echo "$PWD/.uv/bin/uv"; return; }
  "$python" -m pip --version >/dev/null 2>&1 || install_pip
  "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .uv 'uv>=0.9,<1' >&2
  echo "$PWD/.uv/bin/uv"
}

install_pip() {
  "$python" -m ensurepip --user >/dev/null 2>&1 && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-pip; } >&2
  else
    echo "setup: neither uv nor pip is here: install one of them (Debian: apt-get install python3-pip) and run scripts/setup again" >&2
    exit 2
  fi
}

uv=$(find_uv)
