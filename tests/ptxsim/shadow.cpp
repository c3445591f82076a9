#include "shadow.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace ptxsim {
namespace {

// Beyond this many unordered accesses of one granule the oldest is forgotten: a tile that every CTA of a
// large grid reads would otherwise cost a list of all of them.
constexpr size_t kMostPast = 64;
// The same of unordered strong writes, each of which looks at all of these.
constexpr auto kMostPastWrites = 16;

bool same(const Cell& a, const Cell& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

}  // namespace

uint32_t View::missing_slow(Actor actor, uint32_t lanes, Tick tick) const {
    if (more) lanes = more->missing(actor, lanes, tick);
    if (lanes && actors->several_launches() && actors->launch_ordered(actors->group(actor).launch, launch))
        return 0;
    return lanes;
}

// calloc maps large ranges lazily, so shadow of memory that is never touched costs nothing.
Shadow::Shadow(uint64_t bytes)
    : cells_(static_cast<Cell*>(std::calloc(bytes / 4 + 1, sizeof(Cell)))), count_(bytes / 4 + 1) {
    static_assert(sizeof(Cell) == 32);
    if (!cells_) throw std::bad_alloc();
}

Shadow::~Shadow() { std::free(cells_); }

void Shadow::clear() {
    std::memset(static_cast<void*>(cells_), 0, count_ * sizeof(Cell));
    splits_.clear();
    free_splits_.clear();
    free_pasts_.clear();
    for (uint32_t i = 0; i < pasts_.size(); ++i) {
        pasts_[i].owners = 0;
        free_pasts_.push_back(i);
    }
}

bool Shadow::strong_pair(const Access& access, uint8_t scope, Actor other, const View& view) const {
    if (access.scope == Scope::kNone || scope == 0) return false;
    const auto common = static_cast<uint8_t>(view.actors->common_scope(access.actor, other));
    return static_cast<uint8_t>(access.scope) >= common && scope >= common;
}

bool Shadow::read(uint64_t offset, uint32_t bytes, const Access& access, const View& view,
                  Conflict& conflict) {
    Step step;
    const bool fine = touch<false>(offset, bytes, access, view, conflict, step);
    forget(step);
    return fine;
}

bool Shadow::read(std::span<const uint32_t> offsets, uint32_t bytes, const Access& access, const View& view,
                  Conflict& conflict) {
    Step step;
    const bool fine = std::all_of(offsets.begin(), offsets.end(), [&](uint32_t offset) {
        return touch<false>(offset, bytes, access, view, conflict, step);
    });
    forget(step);
    return fine;
}

bool Shadow::write(uint64_t offset, uint32_t bytes, const Access& access, const View& view,
                   Conflict& conflict) {
    Step step;
    const bool fine = touch<true>(offset, bytes, access, view, conflict, step);
    forget(step);
    return fine;
}

template <bool kWrite>
bool Shadow::touch(uint64_t offset, uint32_t bytes, const Access& access, const View& view,
                   Conflict& conflict, Step& step) {
    const uint64_t end = offset + bytes;
    for (uint64_t granule = offset & ~uint64_t{3}; granule < end; granule += 4) {
        uint8_t mask = 0xf;
        if (granule < offset) mask &= static_cast<uint8_t>(0xf << (offset - granule));
        if (granule + 4 > end) mask &= static_cast<uint8_t>(0xf >> (granule + 4 - end));
        Cell& cell = cells_[granule >> 2];
        if (step.known && same(cell, step.before)) {
            hold_list(step.after);
            release_list(cell);
            cell = step.after;
            continue;
        }
        bool fine;
        if (cell.flags & Cell::kSplit || (cell.bytes != mask && cell.bytes)) {
            fine = touch_part<kWrite>(cell, mask, access, view, conflict);
        } else {
            const bool repeats = mask == 0xf && bytes > 4;
            const Cell before = cell;
            if (repeats) hold_list(before);
            cell.bytes = mask;
            fine =
                kWrite ? write_unit(cell, access, view, conflict) : read_unit(cell, access, view, conflict);
            if (repeats) remember(step, before, cell);
        }
        if (!fine) {
            conflict.granule = granule;
            return false;
        }
    }
    return true;
}

template <bool kWrite>
bool Shadow::touch_part(Cell& cell, uint8_t mask, const Access& access, const View& view,
                        Conflict& conflict) {
    if (!(cell.flags & Cell::kSplit)) split(cell);
    const uint32_t index = cell.writer;
    for (int byte = 0; byte < 4; ++byte) {
        if (!(mask >> byte & 1)) continue;
        Cell& part = splits_[index][byte];
        part.bytes = 1;
        if (!(kWrite ? write_unit(part, access, view, conflict) : read_unit(part, access, view, conflict))) {
            return false;
        }
    }
    if (kWrite && mask == 0xf) {  // one writer of the whole granule: one cell again
        const Cell whole = splits_[index][0];
        for (int byte = 1; byte < 4; ++byte) drop_past(splits_[index][byte]);
        free_splits_.push_back(index);
        cell = whole;
        cell.bytes = 0xf;
    }
    return true;
}

void Shadow::split(Cell& cell) {
    uint32_t index;
    if (free_splits_.empty()) {
        index = static_cast<uint32_t>(splits_.size());
        splits_.emplace_back();
    } else {
        index = free_splits_.back();
        free_splits_.pop_back();
    }
    for (int byte = 0; byte < 4; ++byte) {
        Cell& part = splits_[index][byte];
        part = cell.bytes >> byte & 1 ? cell : Cell{};
        hold_list(part);
    }
    release_list(cell);
    cell = Cell{};
    cell.writer = index;
    cell.bytes = 0xf;
    cell.flags = Cell::kSplit;
}

bool Shadow::read_unit(Cell& cell, const Access& access, const View& view, Conflict& conflict) {
    if (cell.write_tick) {
        const uint32_t lanes = 1u << cell.write_lane;
        const uint8_t scope = cell.scopes & 15;
        conflict.actor = cell.writer;
        conflict.lanes = lanes;
        conflict.was_write = true;
        conflict.line = cell.write_line;
        conflict.scope = static_cast<Scope>(scope);
        if (access.non_coherent && view.actors->group(cell.writer).launch == view.launch) {
            conflict.kind = Conflict::Kind::kNonCoherent;
            return false;
        }
        if (view.missing(cell.writer, lanes, cell.write_tick) &&
            !strong_pair(access, scope, cell.writer, view)) {
            conflict.kind = Conflict::Kind::kRace;
            return false;
        }
        if (access.async_proxy && view.actors->kind(cell.writer) == ActorKind::kWarp &&
            view.missing(view.actors->fenced(cell.writer), lanes, cell.write_tick)) {
            conflict.kind = Conflict::Kind::kProxy;
            return false;
        }
    }
    if (cell.flags & Cell::kPastWrites) {
        for (const Past& old : pasts_[cell.reader].accesses) {
            if (!old.wrote) continue;
            const uint32_t unknown = view.missing(old.actor, old.lanes, old.tick);
            if (!unknown || strong_pair(access, old.scope, old.actor, view)) continue;
            conflict = {Conflict::Kind::kRace,         old.actor, unknown, true,
                        static_cast<Scope>(old.scope), old.line};
            return false;
        }
    }
    if (access.non_coherent) cell.flags |= Cell::kReadNonCoherent;
    const auto scope = static_cast<uint8_t>(access.scope);
    if (!(cell.flags & Cell::kMany)) {
        const bool same = cell.reader == access.actor && cell.read_tick == access.tick;
        if (same) {
            cell.read_lanes |= 1u << access.lane;
            if ((cell.scopes >> 4) > scope)
                cell.scopes = static_cast<uint8_t>((cell.scopes & 15) | scope << 4);
            return true;
        }
        if (!cell.read_tick || !view.missing(cell.reader, cell.read_lanes, cell.read_tick)) {
            cell.reader = access.actor;
            cell.read_tick = access.tick;
            cell.read_lanes = 1u << access.lane;
            cell.read_line = access.line;
            cell.scopes = static_cast<uint8_t>((cell.scopes & 15) | scope << 4);
            return true;
        }
    }
    add_reader(cell, access, view);
    return true;
}

uint32_t Shadow::new_list() {
    uint32_t list;
    if (free_pasts_.empty()) {
        list = static_cast<uint32_t>(pasts_.size());
        pasts_.emplace_back();
    } else {
        list = free_pasts_.back();
        free_pasts_.pop_back();
    }
    pasts_[list].owners = 1;
    pasts_[list].accesses.clear();
    return list;
}

void Shadow::hold_list(const Cell& cell) {
    if (cell.flags & Cell::kMany) ++pasts_[cell.reader].owners;
}

void Shadow::release_list(const Cell& cell) {
    if (cell.flags & Cell::kMany && --pasts_[cell.reader].owners == 0) free_pasts_.push_back(cell.reader);
}

void Shadow::remember(Step& step, const Cell& before, const Cell& after) {
    forget(step);
    step = {before, after, true};
    hold_list(after);
}

void Shadow::forget(Step& step) {
    if (!step.known) return;
    release_list(step.before);
    release_list(step.after);
    step.known = false;
}

std::vector<Shadow::Past>& Shadow::past(Cell& cell) {
    if (cell.flags & Cell::kMany && pasts_[cell.reader].owners == 1) return pasts_[cell.reader].accesses;
    const uint32_t list = new_list();
    std::vector<Past>& accesses = pasts_[list].accesses;
    if (cell.flags & Cell::kMany) {
        accesses = pasts_[cell.reader].accesses;
        release_list(cell);
    } else if (cell.read_tick) {
        const auto scope = static_cast<uint8_t>(cell.scopes >> 4);
        accesses.push_back({cell.reader, cell.read_tick, cell.read_lanes, cell.read_line, scope, false});
    }
    cell.reader = list;
    cell.flags |= Cell::kMany;
    return accesses;
}

void Shadow::add_reader(Cell& cell, const Access& access, const View& view) {
    std::vector<Past>& list = past(cell);
    const auto scope = static_cast<uint8_t>(access.scope);
    for (Past& old : list) {
        if (old.wrote || old.actor != access.actor || old.tick != access.tick) continue;
        old.lanes |= 1u << access.lane;
        old.scope = std::min(old.scope, scope);
        return;
    }
    // A write that must come after this read must come after the reads it knows of.
    std::erase_if(
        list, [&](const Past& old) { return !old.wrote && !view.missing(old.actor, old.lanes, old.tick); });
    if (list.size() >= kMostPast) list.erase(list.begin());
    list.push_back({access.actor, access.tick, 1u << access.lane, access.line, scope, false});
}

void Shadow::drop_past(Cell& cell) {
    release_list(cell);
    cell.flags &= static_cast<uint8_t>(~(Cell::kMany | Cell::kReadNonCoherent | Cell::kPastWrites));
    cell.reader = 0;
    cell.read_tick = 0;
    cell.read_lanes = 0;
    cell.read_line = 0;
    cell.scopes &= 15;
}

bool Shadow::write_unit(Cell& cell, const Access& access, const View& view, Conflict& conflict) {
    const auto write_scope = static_cast<uint8_t>(cell.scopes & 15);
    const uint32_t write_lanes = 1u << cell.write_lane;
    const bool write_unordered = cell.write_tick && view.missing(cell.writer, write_lanes, cell.write_tick);
    if (write_unordered && !strong_pair(access, write_scope, cell.writer, view)) {
        conflict = {Conflict::Kind::kRace,           cell.writer,    write_lanes, true,
                    static_cast<Scope>(write_scope), cell.write_line};
        return false;
    }
    // False if the access `old` races with this one. Sets `unordered`.
    bool unordered = false;
    auto check = [&](const Past& old) {
        conflict = {Conflict::Kind::kRace,         old.actor, old.lanes, old.wrote,
                    static_cast<Scope>(old.scope), old.line};
        if (!old.wrote && cell.flags & Cell::kReadNonCoherent &&
            view.actors->group(old.actor).launch == view.launch) {
            conflict.kind = Conflict::Kind::kNonCoherent;
            return false;
        }
        const uint32_t unknown = view.missing(old.actor, old.lanes, old.tick);
        unordered = unknown != 0;
        if (!unordered || strong_pair(access, old.scope, old.actor, view)) return true;
        conflict.lanes = unknown;
        return false;
    };
    if (cell.flags & Cell::kMany) {
        const std::vector<Past>& list = pasts_[cell.reader].accesses;
        kept_.clear();
        for (const Past& old : list) {
            if (!check(old)) return false;
            if (unordered) kept_.push_back(old);
        }
        if (kept_.empty()) {
            drop_past(cell);
        } else if (kept_.size() < list.size()) {
            past(cell) = kept_;
        }
    } else if (cell.read_tick) {
        const auto scope = static_cast<uint8_t>(cell.scopes >> 4);
        if (!check({cell.reader, cell.read_tick, cell.read_lanes, cell.read_line, scope, false}))
            return false;
        if (!unordered) drop_past(cell);
    }
    if (write_unordered) {
        std::vector<Past>& list = past(cell);
        auto same = std::find_if(list.begin(), list.end(), [&](const Past& old) {
            return old.wrote && old.actor == cell.writer && old.tick == cell.write_tick &&
                   old.scope == write_scope;
        });
        if (same != list.end()) {
            same->lanes |= write_lanes;
        } else {
            const auto wrote = [](const Past& old) { return old.wrote; };
            if (std::count_if(list.begin(), list.end(), wrote) >= kMostPastWrites) {
                list.erase(std::find_if(list.begin(), list.end(), wrote));
            }
            list.push_back({cell.writer, cell.write_tick, write_lanes, cell.write_line, write_scope, true});
        }
        cell.flags |= Cell::kPastWrites;
    }
    cell.writer = access.actor;
    cell.write_tick = access.tick;
    cell.write_lane = access.lane;
    cell.write_line = access.line;
    cell.scopes = static_cast<uint8_t>((cell.scopes & 0xf0) | static_cast<uint8_t>(access.scope));
    return true;
}

}  // namespace ptxsim
