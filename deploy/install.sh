# Puts our wheels into an image's environment, with the licences and an SBOM of all that is there then:
# `install.sh IMAGE DISTRIBUTION...`
set -eu
image=$1 python=/opt/statestream/bin/python
shift
for name in "$@"; do set -- "$@" /wheels/"$name"-[0-9]*.whl && shift; done
/opt/build/bin/pip --python "$python" install --no-deps "$@"
/opt/build/bin/pip --python "$python" check
/opt/build/bin/python tools/inventory.py "$image" --python "$python" --out /opt/statestream/share/doc
