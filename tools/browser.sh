#!/usr/bin/env bash
# A Chromium for the slow test of the page that `view` serves, from Debian's packages: where there is none, and where
# they can be installed without asking. Without it that test is skipped and says so; nothing else needs it.
set -u
command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "== no Chromium here: the test of the page in a browser will be skipped (apt-get install chromium chromium-driver)"
    exit 0
fi
echo "== installing Chromium, for the test of the page in a browser"
export DEBIAN_FRONTEND=noninteractive
patiently=(-o Acquire::Retries=5 -o DPkg::Lock::Timeout=300)
apt-get "${patiently[@]}" update -qq &&
    apt-get "${patiently[@]}" install -qq -y --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null ||
    echo "== Chromium could not be installed: that test will be skipped"
exit 0
