#!/bin/sh
# Installs a wheel into an empty virtual environment and uses it from another folder: the core install
# must work with torch, triton and numpy alone, and every other command must name the missing extra.
set -eu
wheel=$(realpath "$1")
constraints=$(realpath constraints.txt)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$constraints" "$wheel"
cd "$folder"
venv/bin/python - <<'PY'
import torch
import cpl, cpl_kernels

print(cpl.__file__, cpl_kernels.config()["native_core"])
assert cpl_kernels.config()["native_core"].startswith("built"), "a wheel built with a compiler has the core"
assert len(cpl_kernels.config()["commit"]) == 40, "a wheel built from the source distribution knows its commit"
model = cpl.create_model("cplir-tiny")
assert model(torch.rand(1, 3, 17, 9)).shape == (1, 3, 17, 9)
PY
venv/bin/cpl info > info.txt
grep -q 'native core: built' info.txt
for command in 'train demo' 'restore photo.png --checkpoint m.safetensors --output out' \
    'eval --checkpoint m.safetensors' 'degrade photo.png --degradation noise --output out' 'data check demo' \
    'inspect --checkpoint m.safetensors --output out' 'serve --checkpoint m.safetensors'; do
  case $command in serve*) extra=serve ;; restore*) extra=restore ;; *) extra=train ;; esac
  if venv/bin/cpl $command > out.txt 2>&1; then
    echo "cpl $command: must fail without the [$extra] extra" >&2
    exit 1
  fi
  if ! grep -q "pip install 'cpl-kernels\[$extra\]'" out.txt || [ "$(wc -l < out.txt)" -ne 1 ]; then
    echo "cpl $command: must name the missing extra in one line, said:" >&2
    cat out.txt >&2
    exit 1
  fi
done
echo "wheel: core install works, $(du -h "$wheel" | cut -f1)"
