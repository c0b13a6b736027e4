#!/usr/bin/env bash
# Install Chromium and its driver from Debian's packages, for the slow tests that look at pages in a browser. Does
# nothing if they exist, or if packages cannot be installed without a password. Without them these tests are skipped.
set -u
command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "== Chromium is not installed: browser tests will be skipped (apt-get install chromium chromium-driver)"
    exit 0
fi
echo "== installing Chromium for the browser tests"
export DEBIAN_FRONTEND=noninteractive
apt_options=(-o Acquire::Retries=5 -o DPkg::Lock::Timeout=300)
apt-get "${apt_options[@]}" update -qq &&
    apt-get "${apt_options[@]}" install -qq -y --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null ||
    echo "== Chromium could not be installed: browser tests will be skipped"
exit 0
