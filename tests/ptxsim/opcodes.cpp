#include "opcodes.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <sstream>

#include "fault.h"
#include "qualifiers.h"

namespace ptxsim {
namespace {

const std::map<std::string, std::string>& named_lists() {
    static const std::map<std::string, std::string> kLists = {
        {"$int", ".u8|.u16|.u32|.u64|.s8|.s16|.s32|.s64"},
        {"$int16up", ".u16|.u32|.u64|.s16|.s32|.s64"},
        {"$carry", ".u32|.s32|.u64|.s64"},
        {"$memory_type", ".b8|.b16|.b32|.b64|.u8|.u16|.u32|.u64|.s8|.s16|.s32|.s64|.f32|.f64"},
        {"$frnd", ".rn|.rz|.rm|.rp"},
        {"$irnd", ".rni|.rzi|.rmi|.rpi"},
        {"$float_compare", ".eq|.ne|.lt|.le|.gt|.ge|.equ|.neu|.ltu|.leu|.gtu|.geu|.num|.nan"},
        {"$space",
         ".global|.shared|.shared::cta|.shared::cluster|.local|.param|.param::entry|.param::func|.const"},
        {"$shared", ".shared|.shared::cta|.shared::cluster"},
        {"$atomic_space", ".global|.shared|.shared::cta|.shared::cluster"},
        {"$scope", ".cta|.cluster|.gpu|.sys"},
        {"$order", ".relaxed|.acquire|.release|.acq_rel"},
        {"$load_cache", ".ca|.cg|.cs|.lu|.cv"},
        {"$L1", ".L1::evict_normal|.L1::evict_unchanged|.L1::evict_first|.L1::evict_last|.L1::no_allocate"},
        {"$L2", ".L2::evict_normal|.L2::evict_first|.L2::evict_last"},
        {"$L2_prefetch", ".L2::64B|.L2::128B|.L2::256B"},
        {"$policy", ".L2::evict_last|.L2::evict_normal|.L2::evict_first|.L2::evict_unchanged"},
    };
    return kLists;
}

std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> parts;
    std::stringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);)
        if (!part.empty()) parts.push_back(part);
    return parts;
}

QualifierSlot parse_slot(std::string text) {
    QualifierSlot slot;
    if (text.front() == '[') {
        slot.optional = true;
        text = text.substr(1, text.size() - 2);
    }
    if (text.front() == '$') text = named_lists().at(text);
    slot.choices = split(text, '|');
    return slot;
}

Form parse_form(const FormText& text) {
    Form form;
    form.text = &text;
    const std::vector<std::string> words = split(text.pattern, ' ');
    for (size_t i = 1; i < words.size(); ++i) form.qualifiers.push_back(parse_slot(words[i]));
    std::string operands = text.operands;
    while (true) {
        const size_t slash = operands.find(" / ");
        form.operands.push_back(split(operands.substr(0, slash), ' '));
        if (slash == std::string::npos) return form;
        operands = operands.substr(slash + 3);
    }
}

struct Tables {
    std::vector<FormText> texts;
    std::map<std::string, std::vector<Form>> forms;

    Tables() {
        for (auto* const table :
             {arithmetic_forms, conversion_forms, memory_forms, control_forms, async_forms, matrix_forms})
            for (const FormText& text : table()) texts.push_back(text);
        for (const FormText& text : texts) forms[split(text.pattern, ' ')[0]].push_back(parse_form(text));
    }
};

const Tables& tables() {
    static const Tables kTables;
    return kTables;
}

bool is_wgmma_shape(const std::string& choice, const std::string& qualifier) {
    int n = 0, k = 0, length = 0;
    if (choice.rfind(".m64nN", 0) != 0) return false;
    if (std::sscanf(qualifier.c_str(), ".m64n%dk%d%n", &n, &k, &length) != 2) return false;
    return static_cast<size_t>(length) == qualifier.size() && n % 8 == 0 && n >= 8 && n <= 256 &&
           choice == ".m64nNk" + std::to_string(k);
}

bool accepts(const QualifierSlot& slot, const std::string& qualifier) {
    for (const std::string& choice : slot.choices)
        if (choice == qualifier || is_wgmma_shape(choice, qualifier)) return true;
    return false;
}

// How many of the qualifiers the form takes in order; all of them and none missing: `complete`.
size_t match_length(const Form& form, const std::vector<std::string>& qualifiers, bool& complete) {
    size_t next = 0;
    complete = false;
    for (const QualifierSlot& slot : form.qualifiers) {
        if (next < qualifiers.size() && accepts(slot, qualifiers[next]))
            ++next;
        else if (!slot.optional)
            return next;
    }
    complete = next == qualifiers.size();
    return next;
}

long count_scopes(const std::vector<std::string>& qualifiers) {
    return std::count_if(qualifiers.begin(), qualifiers.end(), [](const std::string& qualifier) {
        return qualifier == ".cta" || qualifier == ".cluster" || qualifier == ".gpu" || qualifier == ".sys";
    });
}

}  // namespace

const std::vector<Form>& forms_of(const std::string& opcode) {
    static const std::vector<Form> kNone;
    const auto found = tables().forms.find(opcode);
    return found == tables().forms.end() ? kNone : found->second;
}

std::vector<const Form*> all_forms() {
    std::vector<const Form*> all;
    for (const auto& [opcode, forms] : tables().forms)
        for (const Form& form : forms) all.push_back(&form);
    return all;
}

std::vector<std::string> split_qualifiers(const std::string& written) {
    std::vector<std::string> qualifiers;
    size_t dot = written.find('.');
    while (dot != std::string::npos) {
        const size_t next = written.find('.', dot + 1);
        std::string word = written.substr(dot, next == std::string::npos ? next : next - dot);
        if (word == ".abs" && !qualifiers.empty() && qualifiers.back() == ".xorsign")
            qualifiers.back() = ".xorsign.abs";
        else
            qualifiers.push_back(std::move(word));
        dot = next;
    }
    return qualifiers;
}

const Form& match_form(const std::string& written, Instruction& instruction) {
    const std::string opcode = written.substr(0, written.find('.'));
    const std::vector<Form>& forms = forms_of(opcode);
    if (forms.empty()) throw Fault("PARSE", "unknown opcode " + opcode);
    const std::vector<std::string> qualifiers = split_qualifiers(written);
    size_t longest = 0;
    for (const Form& form : forms) {
        bool complete = false;
        longest = std::max(longest, match_length(form, qualifiers, complete));
        if (!complete) continue;
        if (count_scopes(qualifiers) > 1) throw Fault("PARSE", opcode + " names two scopes");
        int spaces = 0, types = 0;
        for (const std::string& qualifier : qualifiers)
            if (!apply_qualifier(qualifier, instruction, spaces, types))
                throw Fault("INTERNAL", "the tables name " + qualifier + ", which has no meaning");
        instruction.opcode = form.text->opcode;
        return form;
    }
    if (longest == qualifiers.size()) throw Fault("PARSE", opcode + " lacks a qualifier or a type");
    throw Fault("PARSE", opcode + " does not take " + qualifiers[longest] + " here");
}

}  // namespace ptxsim
