# Run on every host of a TPU VM slice before the training: sh launch/mount_bucket.sh BUCKET FOLDER mounts the bucket there,
# afresh: another run may have left another one. gcsfuse comes from Google's apt repository.
set -e
bucket=$1 folder=$2
key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt

install_gcsfuse() {
    curl --fail --silent --show-error "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null &&
        echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null &&
        sudo apt-get -qq update &&
        sudo apt-get -qq install --yes gcsfuse
}

# A machine that has just started may be updating itself, and holds the lock of apt meanwhile.
command -v gcsfuse >/dev/null || install_gcsfuse || { sleep 120 && install_gcsfuse; }
if findmnt "$folder" >/dev/null; then sudo umount --lazy "$folder"; fi
sudo mkdir -p "$folder"
sudo chown "$(id -u)" "$folder"
# Hosts share the run folder, so none may remember what a file was, or that there was none. By itself gcsfuse remembers:
# on machines such as a v6e host without end.
gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" "$folder"
