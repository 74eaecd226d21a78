# Takes out of an environment what only its packages' own tests use, some 40 MB: `slim.sh FOLDER`.
set -eu
cd "$1"/lib/python3*/site-packages
find . -type d -path '*/numpy/*' -name tests -prune -exec rm -rf {} +
rm -rf onnx/backend/test onnx/test
