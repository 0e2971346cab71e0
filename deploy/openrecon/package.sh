#!/bin/sh
# Builds the image from this checkout and packs it as OpenRecon takes it: a zip of the saved image and a manual in PDF,
# all of one name.
# Usage: package.sh MANUAL.pdf      Needs docker, python3 and zip. Leaves OpenRecon_lfmri_lfmri_V<version>.zip here.
set -eu
manual=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
version=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["general"]["version"])' "$here/OpenReconLabel.json")
name="OpenRecon_lfmri_lfmri_V$version"
tag="openrecon_lfmri_lfmri:v$version"
docker build --platform linux/amd64 --file "$here/../Dockerfile" --target openrecon --tag "$tag" \
  --label "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0=$(base64 -w0 "$here/OpenReconLabel.json")" \
  "$here/../.."
docker save --output "$name.tar" "$tag"
cp "$manual" "$name.pdf"
zip -0 "$name.zip" "$name.tar" "$name.pdf"
rm "$name.tar" "$name.pdf"
