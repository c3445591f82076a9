// Runs every registered case on every tier of this host. Arguments, if any, select cases by a part of their
// name.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "harness.h"

namespace dse::sanitized {

void fail(const char* file, int line, const char* condition) {
    std::fprintf(stderr, "%s:%d: expected %s\n", file, line, condition);
    std::abort();
}

namespace {

bool selected(const std::string& name, int argc, char** argv) {
    for (int i = 1; i < argc; ++i)
        if (name.find(argv[i]) != std::string::npos) return true;
    return argc < 2;
}

// A process of its own: the sanitizers end it at the first fault.
bool passes(const Case& test, cpu::Isa isa) {
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
        cpu::set_current_isa(isa);
        test.run();
        std::exit(0);  // leaks are reported on the way out
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

int run_all(int argc, char** argv) {
    int passed = 0, failed = 0;
    for (const char* tier :
         {"generic", "avx2", "avx512-novbmi", "avx512", "avx512_bf16-novbmi", "avx512_bf16"}) {
        cpu::Isa isa;
        try {
            isa = cpu::parse_capability(tier);
        } catch (const std::invalid_argument& error) {
            std::printf("skipped: %s\n", error.what());
            continue;
        }
        for (const Case& test : cases()) {
            if (!selected(test.name, argc, argv)) continue;
            const bool ok = passes(test, isa);
            ++(ok ? passed : failed);
            if (!ok) std::printf("FAILED %s on %s\n", test.name.c_str(), tier);
        }
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace dse::sanitized

int main(int argc, char** argv) { return dse::sanitized::run_all(argc, argv); }
