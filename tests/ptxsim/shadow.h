// Race detection over a range of memory: for each 4-byte granule, who wrote it last and who has read it
// since.
//
// An access conflicts with an earlier one when at least one of them writes, the later one's thread does not
// know the earlier one to have happened (clock.h), and they are not both strong operations whose scopes hold
// each other. A granule that is accessed in parts (bytes, halves) by different lanes is split into bytes.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "actors.h"
#include "clock.h"

namespace ptxsim {

struct Access {
    Actor actor = 0;
    Tick tick = 0;
    int32_t line = 0;  // of the PTX text, for reports
    uint8_t lane = 0;
    Scope scope = Scope::kNone;  // kNone: a weak access
    bool atomic = false;         // a strong read-modify-write
    bool non_coherent = false;   // ld.global.nc
    bool async_proxy = false;    // wgmma, bulk and tensor copies: ordinary writes need a proxy fence first
};

// What the accessing thread knows.
struct View {
    const Clock* known = nullptr;
    const Clock* more = nullptr;  // beside `known`; may be null
    Actor self = 0;               // program order: what this lane of this actor did is known
    uint8_t lane = 0;
    Actor floor = 0;  // actors below it ended before this launch began
    uint32_t launch = 0;
    const ActorTable* actors = nullptr;

    uint32_t missing(Actor actor, uint32_t lanes, Tick tick) const {
        if (actor < floor) return 0;
        if (actor == self) {
            lanes &= ~(1u << lane);
            if (!lanes) return 0;
        }
        lanes = known->missing(actor, lanes, tick);
        if (!lanes) return 0;
        return missing_slow(actor, lanes, tick);
    }

  private:
    uint32_t missing_slow(Actor actor, uint32_t lanes, Tick tick) const;
};

struct Conflict {
    enum class Kind : uint8_t { kRace, kProxy, kNonCoherent } kind = Kind::kRace;
    Actor actor = 0;
    uint32_t lanes = 0;
    bool was_write = false;
    Scope scope = Scope::kNone;
    int32_t line = 0;      // of the other access
    uint64_t granule = 0;  // byte offset of the granule
};

struct Cell {
    Actor writer = 0;  // index of the split bytes if kSplit
    Tick write_tick = 0;
    Actor reader = 0;  // index of the list of past accesses, which cells may share, if kMany
    Tick read_tick = 0;
    uint32_t read_lanes = 0;
    int32_t write_line = 0, read_line = 0;
    uint8_t write_lane = 0;
    uint8_t scopes = 0;  // of the write, of the read << 4
    uint8_t bytes = 0;   // which of the four bytes; 0: never accessed
    uint8_t flags = 0;
    static constexpr uint8_t kSplit = 1, kMany = 2, kReadNonCoherent = 4, kPastWrites = 8;
};

class Shadow {
  public:
    explicit Shadow(uint64_t bytes);
    ~Shadow();
    Shadow(const Shadow&) = delete;
    Shadow& operator=(const Shadow&) = delete;

    // Record an access of [offset, offset + bytes), or a read of several such pieces. False and `conflict` if
    // it races; the access is then not recorded any further.
    bool read(uint64_t offset, uint32_t bytes, const Access& access, const View& view, Conflict& conflict);
    bool read(std::span<const uint32_t> offsets, uint32_t bytes, const Access& access, const View& view,
              Conflict& conflict);
    bool write(uint64_t offset, uint32_t bytes, const Access& access, const View& view, Conflict& conflict);
    void clear();

  private:
    // One of several accesses that are not ordered among themselves: reads, and (wrote) strong writes that an
    // unordered strong write has followed.
    struct Past {
        Actor actor;
        Tick tick;
        uint32_t lanes;
        int32_t line;
        uint8_t scope;
        bool wrote;
    };
    struct PastList {
        uint32_t owners = 0;  // cells and steps
        std::vector<Past> accesses;
    };
    // What the access being recorded made of a cell: the same of every equal one. Neighbours mostly are.
    struct Step {
        Cell before, after;
        bool known = false;
    };
    template <bool kWrite>
    bool touch(uint64_t offset, uint32_t bytes, const Access& access, const View& view, Conflict& conflict,
               Step& step);
    template <bool kWrite>
    bool touch_part(Cell& cell, uint8_t mask, const Access& access, const View& view, Conflict& conflict);
    bool read_unit(Cell& cell, const Access& access, const View& view, Conflict& conflict);
    bool write_unit(Cell& cell, const Access& access, const View& view, Conflict& conflict);
    bool strong_pair(const Access& access, uint8_t scope, Actor other, const View& view) const;
    // The cell's own list, to be changed; makes it, with the cell's reader in it, if there is none.
    std::vector<Past>& past(Cell& cell);
    void hold_list(const Cell& cell);
    void release_list(const Cell& cell);
    void remember(Step& step, const Cell& before, const Cell& after);
    void forget(Step& step);
    void add_reader(Cell& cell, const Access& access, const View& view);
    void drop_past(Cell& cell);
    uint32_t new_list();
    void split(Cell& cell);

    Cell* cells_;
    uint64_t count_;
    std::vector<std::array<Cell, 4>> splits_;
    std::vector<PastList> pasts_;
    std::vector<Past> kept_;  // scratch
    std::vector<uint32_t> free_pasts_, free_splits_;
};

}  // namespace ptxsim
