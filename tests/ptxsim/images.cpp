#include "images.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "fault.h"
#include "parser.h"
#include "text.h"

namespace ptxsim {
namespace {

// The fat binary's layout as nvcc 13 writes it: a header, then one entry an image, each with a header of its
// own.
constexpr uint32_t kWrapperMagic = 0x466243b1, kContainerMagic = 0xba55ed50;
constexpr uint16_t kPtxEntry = 1;

struct Wrapper {
    uint32_t magic, version;
    const uint8_t* data;
    void* names;
};

struct Container {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;  // of all entries
};

struct Entry {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t bytes;
    uint32_t compressed_bytes, options_offset;
    uint16_t minor, major;
    uint32_t architecture;
};

template <class T>
T read(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

struct PtxText {
    uint32_t architecture;
    std::string text;  // empty: compressed
};

std::vector<PtxText> ptx_of(const uint8_t* fat_binary) {
    const auto container = read<Container>(fat_binary);
    if (container.magic != kContainerMagic) throw Fault("IMAGE", "the fat binary has an unknown layout");
    std::vector<PtxText> found;
    const uint8_t* end = fat_binary + container.header_bytes + container.bytes;
    for (const uint8_t* at = fat_binary + container.header_bytes; at + sizeof(Entry) <= end;) {
        const auto entry = read<Entry>(at);
        if (entry.kind == kPtxEntry) {
            const char* text = reinterpret_cast<const char*>(at + entry.header_bytes);
            const size_t length = strnlen(text, entry.bytes);
            const std::string plain(text, length);
            const bool readable = plain.find(".version") != std::string::npos;
            found.push_back({entry.architecture, readable ? plain : std::string()});
        }
        at += entry.header_bytes + entry.bytes;
    }
    return found;
}

// "sm_90a" runs on 9.0 alone; "sm_80" on 8.0 and every later architecture.
bool runs_on(const std::string& ptx, int64_t capability) {
    const size_t at = ptx.find(".target sm_");
    if (at == std::string::npos) return true;  // the parser will say so
    char* end = nullptr;
    const long target = std::strtol(ptx.c_str() + at + 11, &end, 10);
    return *end == 'a' ? capability == target : capability >= target;
}

}  // namespace

std::unique_ptr<Image> Image::from_fat_binary(const void* wrapper) {
    auto image = std::make_unique<Image>();
    const auto head = read<Wrapper>(static_cast<const uint8_t*>(wrapper));
    if (head.magic == kWrapperMagic) image->fat_binary_ = head.data;
    return image;
}

std::unique_ptr<Image> Image::from_text(std::string text) {
    auto image = std::make_unique<Image>();
    image->text_ = std::move(text);
    return image;
}

Module& Image::module(int64_t capability) {
    if (module_) return *module_;
    if (text_.empty()) {
        if (fat_binary_ == nullptr) throw Fault("IMAGE", "what was registered is no fat binary");
        const PtxText* best = nullptr;
        const std::vector<PtxText> all = ptx_of(fat_binary_);
        for (const PtxText& ptx : all) {
            if (ptx.text.empty())
                throw Fault("IMAGE", "the fat binary's PTX is compressed: compile with nvcc --no-compress");
            if (runs_on(ptx.text, capability) && (best == nullptr || ptx.architecture > best->architecture))
                best = &ptx;
        }
        if (best == nullptr)
            throw Fault("IMAGE",
                        format("the fat binary holds no PTX for sm_%d (%zu PTX images inside): compile with "
                               "-gencode 'arch=compute_80,code=[compute_80,sm_80]'",
                               static_cast<int>(capability), all.size()));
        text_ = best->text;
    }
    if (!runs_on(text_, capability))
        throw Fault("IMAGE", format("the PTX is not for sm_%d", static_cast<int>(capability)));
    module_ = parse_module(text_);
    return *module_;
}

Image* Images::add(std::unique_ptr<Image> image) {
    Image* handle = image.get();
    loaded[handle] = std::move(image);
    return handle;
}

void Images::remove(Image* image) {
    std::erase_if(functions, [&](const auto& item) { return item.second.image == image; });
    std::erase_if(symbols, [&](const auto& item) { return item.second.image == image; });
    loaded.erase(image);
}

}  // namespace ptxsim
