#!/usr/bin/env bash
# Pins the images that files name, by the digest of what the registry has by this name now: whatever is put there later
# under the same name is not taken.
#
#   deploy/pin.sh deploy/Dockerfile         before the image is built
#   deploy/pin.sh deploy/kuberay.yaml       when it has been pushed
#
# Run it again to take what is there by then. Wants docker with buildx, logged in where the registry asks for it.
set -euo pipefail
for file in "${@:?a file that names images, such as deploy/Dockerfile}"; do
    images=$(sed -nE 's/^(FROM |[ -]*image: )([^ @]+).*/\2/p' "$file" | sort -u)
    if [[ -z $images || $images == *YOUR-* ]]; then
        echo "error: $file: ${images:-no image}: expected images by the names that a registry knows" >&2
        exit 2
    fi
    for image in $images; do
        digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}')
        if [[ ! $digest =~ ^sha256:[0-9a-f]{64}$ ]]; then
            echo "error: $image: the registry gives no digest, but: $digest" >&2
            exit 1
        fi
        sed -i.bak -E "s#^(FROM |[ -]*image: )${image//./\\.}(@[^ ]+)?( |\$)#\\1$image@$digest\\3#" "$file"
        echo "$file: $image@$digest"
    done
done
