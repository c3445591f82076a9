#!/usr/bin/env bash
# Builds the torch-free kernels with AddressSanitizer and UndefinedBehaviorSanitizer and runs them on ragged and
# adversarial shapes. Arguments select cases by a part of their name. The last line is "N passed, N failed".
set -euo pipefail
cd "$(dirname "$0")/../.."
make --no-print-directory --silent -j "${JOBS:-2}" -f tests/sanitized/build.mk
exec build/sanitized/run "$@"
