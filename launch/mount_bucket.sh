# sh launch/mount_bucket.sh BUCKET FOLDER mounts a bucket; run on every host of a TPU VM slice before the training. It
# remounts, because another run may have left another bucket. gcsfuse comes from Google's apt repository.
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

# A machine that has just started may be updating itself, which holds apt's lock.
command -v gcsfuse >/dev/null || install_gcsfuse || { sleep 120 && install_gcsfuse; }
if findmnt "$folder" >/dev/null; then sudo umount --lazy "$folder"; fi
sudo mkdir -p "$folder"
sudo chown "$(id -u)" "$folder"
# Hosts share the run folder, so none may cache the metadata of a file or its absence. The default is to cache, without
# limit on machines such as v6e hosts.
gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" "$folder"
