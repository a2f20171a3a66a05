// SPDX-License-Identifier: Apache-2.0
#include "snapshot.h"

#include <math.h>
#include <stdbool.h>

#include "hmac.h"

#define BIT(number)   (UINT32_C(1) << (number))
#define SUM_TOLERANCE 1e-3 // float32 rounding over MAX_LABELS entries
#define ID_DIGITS     16   // hex digits of a baseline's id

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

// Gravest first; see snapshot.h.
enum fault { MALFORMED, UNKNOWN_FIELD, UNKNOWN_SCHEMA_VERSION, HEADER_MISMATCH, OVER_LIMIT, INVALID_VALUE, NO_FAULT };

static const enum reason REASONS[] = {
    [MALFORMED] = REASON_MALFORMED,
    [UNKNOWN_FIELD] = REASON_UNKNOWN_FIELD,
    [UNKNOWN_SCHEMA_VERSION] = REASON_UNKNOWN_SCHEMA_VERSION,
    [HEADER_MISMATCH] = REASON_HEADER_MISMATCH,
    [OVER_LIMIT] = REASON_OVER_LIMIT,
    [INVALID_VALUE] = REASON_INVALID_VALUE,
    [NO_FAULT] = REASON_NONE,
};

struct check {
    is_printable *printable;
    void *context; // of `printable`
    bool stopped;  // by `printable`
    enum fault fault;
    const char *detail;
};

// One message while it is read. seen: numbers of the fields that came.
struct reader {
    const uint8_t *at, *end;
    const struct shape *shape;
    uint32_t seen;
};

struct field {
    uint32_t number;
    uint64_t value;   // VARINT, FIXED64
    struct span data; // BYTES
};

static void refuse(struct check *check, enum fault fault, const char *detail)
{
    if (fault < check->fault) {
        check->fault = fault;
        check->detail = detail;
    }
}

static void invalid(struct check *check, const char *detail)
{
    refuse(check, INVALID_VALUE, detail);
}

static void limit(struct check *check, size_t count, size_t most, const char *detail)
{
    if (count > most)
        refuse(check, OVER_LIMIT, detail);
}

static bool malformed(struct check *check, const char *detail)
{
    refuse(check, MALFORMED, detail);
    return false;
}

// ---- wire format

static bool read_varint(struct check *check, struct reader *in, uint64_t *value)
{
    const uint8_t *at = in->at;
    uint64_t sum = 0;
    for (unsigned shift = 0; at < in->end; shift += 7) {
        uint8_t byte = *at++;
        if (shift == 63 && byte > 1)
            return malformed(check, "a varint of more than 64 bits");
        sum |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            if (!byte && shift)
                return malformed(check, "a varint that is longer than it needs to be");
            in->at = at;
            *value = sum;
            return true;
        }
    }
    return malformed(check, "the body ends inside a varint");
}

static bool read_value(struct check *check, struct reader *in, unsigned wire, struct field *out)
{
    uint64_t size;
    switch (wire) {
    case VARINT:
        return read_varint(check, in, &out->value);
    case FIXED64:
    case FIXED32:
        size = wire == FIXED64 ? 8 : 4;
        if ((size_t)(in->end - in->at) < size)
            return malformed(check, "a message ends inside a number");
        if (wire == FIXED64)
            out->value = load_le64(in->at);
        in->at += size;
        return true;
    case BYTES:
        if (!read_varint(check, in, &size))
            return false;
        if (size > (uint64_t)(in->end - in->at))
            return malformed(check, "a field is longer than what it is in");
        out->data = (struct span){in->at, size};
        in->at += size;
        return true;
    default:
        return malformed(check, "a group, or a wire type that does not exist");
    }
}

// RFC 3629: shortest form, no surrogates, at most U+10FFFF.
static bool is_utf8(struct span text)
{
    const uint8_t *at = text.at, *end = at + text.size;
    while (at < end) {
        uint8_t lead = *at++;
        if (lead < 0x80)
            continue;
        if (lead < 0xc2 || lead > 0xf4)
            return false;
        unsigned more = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
        if ((size_t)(end - at) < more)
            return false;
        if ((lead == 0xe0 && at[0] < 0xa0) || (lead == 0xed && at[0] > 0x9f) || (lead == 0xf0 && at[0] < 0x90) ||
            (lead == 0xf4 && at[0] > 0x8f))
            return false;
        for (; more; more--)
            if ((*at++ & 0xc0) != 0x80)
                return false;
    }
    return true;
}

// Every string is a name, a cause or a reason. They end up in logs and on terminals: no control characters.
static bool check_name(struct check *check, struct span text)
{
    uint8_t controls = 0, all = 0;
    for (size_t i = 0; i < text.size; i++) {
        all |= text.at[i];
        controls |= text.at[i] < 0x20 || text.at[i] == 0x7f;
    }
    limit(check, text.size, MAX_NAME, "a name or reason is too long");
    if (all >= 0x80) {
        if (!is_utf8(text))
            return malformed(check, "text that is not UTF-8");
        if (text.size > MAX_NAME)
            return true;
        int printable = check->printable(check->context, text);
        check->stopped |= printable < 0;
        controls |= printable == 0;
    }
    if (controls)
        invalid(check, "a name or reason with characters that cannot be printed");
    return true;
}

// What the schema says of a known field's value.
static bool check_known(struct check *check, struct reader *in, unsigned wire, const struct field *field)
{
    const struct shape *shape = in->shape;
    uint32_t bit = BIT(field->number);
    if (shape->once & in->seen & bit)
        return malformed(check, "a field twice that there is once");
    in->seen |= bit;
    if (shape->nonzero & bit && !(wire == BYTES ? field->data.size : field->value))
        return malformed(check, "a default value written out");
    if (shape->narrow & bit && field->value > UINT32_MAX)
        return malformed(check, "a number of more than 32 bits");
    if (shape->enums & bit && field->value > INT32_MAX && field->value < (uint64_t)INT32_MIN)
        return malformed(check, "an enum of more than 32 bits");
    if (shape->packed & bit && field->data.size % 8)
        return malformed(check, "packed numbers of another size");
    return !(shape->text & bit) || check_name(check, field->data);
}

// The next known field. False at the end of the message and after what is malformed; unknown fields are skipped.
static bool next(struct check *check, struct reader *in, struct field *out)
{
    while (in->at < in->end && check->fault != MALFORMED && !check->stopped) {
        uint64_t tag;
        if (!read_varint(check, in, &tag))
            return false;
        unsigned wire = tag & 7;
        if (tag < 8 || tag > UINT32_MAX)
            return malformed(check, "a field number that does not exist");
        out->number = (uint32_t)(tag >> 3);
        if (!read_value(check, in, wire, out))
            return false;
        if (out->number < 32) {
            if (in->shape->wire[wire] & BIT(out->number))
                return check_known(check, in, wire, out);
            if (wire == FIXED64 && in->shape->packed & BIT(out->number))
                return malformed(check, "numbers that are not packed");
        }
        refuse(check, UNKNOWN_FIELD, "fields this broker does not know: upgrade the broker before its agents");
    }
    if (~in->seen & in->shape->required)
        malformed(check, "a map entry without key or value");
    return false;
}

static struct reader message(struct span data, const struct shape *shape)
{
    return (struct reader){data.at, data.at + data.size, shape, 0};
}

// ---- values

static double real(const struct field *field)
{
    double value;
    memcpy(&value, &field->value, sizeof value);
    return value;
}

static double finite(struct check *check, const struct field *field)
{
    double value = real(field);
    if (!isfinite(value))
        invalid(check, "a number that is not finite");
    return value;
}

static double unit(struct check *check, double value)
{
    if (!(value >= 0.0 && value <= 1.0)) // also refuses NaN
        invalid(check, "an axis or a probability outside [0, 1]");
    return value;
}

static void present(struct check *check, const struct reader *in, uint32_t number)
{
    if (!(in->seen & BIT(number)))
        invalid(check, "an empty name");
}

// Names that must differ, in order of length and bytes. Beyond `most` there are none: that is over a limit anyway.
struct names {
    size_t count, most;
    struct span *sorted;
};

static int compare(struct span a, struct span b)
{
    if (a.size != b.size)
        return a.size < b.size ? -1 : 1;
    return a.size ? memcmp(a.at, b.at, a.size) : 0;
}

static void add_name(struct check *check, struct names *names, struct span name)
{
    size_t low = 0, high = names->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = compare(name, names->sorted[middle]);
        if (order == 0) {
            invalid(check, "the same name twice");
            return;
        }
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    if (names->count == names->most)
        return;
    memmove(names->sorted + low + 1, names->sorted + low, (names->count - low) * sizeof *names->sorted);
    names->sorted[low] = name;
    names->count++;
}

// ---- messages, innermost first. A field that the .proto gains does not compile here until it has a rule.

static void check_hash_name(struct check *check, struct span data, struct names *hashes)
{
    struct reader in = message(data, &OBJECT_SKETCH_NAMES_ENTRY);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum object_sketch_names_entry_field)field.number) {
        case OBJECT_SKETCH_NAMES_ENTRY_KEY: // eight bytes before in.at, where a name can point to
            add_name(check, hashes, (struct span){in.at - 8, 8});
            break;
        case OBJECT_SKETCH_NAMES_ENTRY_VALUE:
            break;
        }
    }
}

static void check_objects(struct check *check, struct span data)
{
    struct span sorted[MAX_OBJECTS];
    struct names named = {0, MAX_OBJECTS, sorted};
    uint64_t hashes = 0, total = 0, names = 0;
    struct reader in = message(data, &OBJECT_SKETCH);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum object_sketch_field)field.number) {
        case OBJECT_SKETCH_HASHES:
            hashes = field.data.size / 8;
            break;
        case OBJECT_SKETCH_TOTAL:
            total = field.value;
            break;
        case OBJECT_SKETCH_NAMES:
            names++;
            check_hash_name(check, field.data, &named);
            break;
        }
    }
    limit(check, hashes, MAX_OBJECTS, "too many object hashes");
    limit(check, names, MAX_OBJECTS, "too many object names");
    if (total < hashes)
        invalid(check, "more object hashes than objects");
}

static void check_distribution(struct check *check, struct span packed)
{
    if (packed.size % sizeof(float)) {
        invalid(check, "a distribution that is not packed float32");
        return;
    }
    limit(check, packed.size / sizeof(float), MAX_LABELS, "too many labels");
    double sum = 0.0;
    bool negative = false;
    for (size_t at = 0; at < packed.size; at += sizeof(float)) {
        float value;
        memcpy(&value, packed.at + at, sizeof value);
        negative |= value < 0.0f;
        sum += value;
    }
    if (negative || !(fabs(sum - 1.0) <= SUM_TOLERANCE)) // also refuses NaN
        invalid(check, "a distribution that is negative or does not sum to 1");
}

static void check_load(struct check *check, struct span data)
{
    uint64_t prompt = 0, cached = 0;
    struct reader in = message(data, &REPLICA_LOAD);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum replica_load_field)field.number) {
        case REPLICA_LOAD_REQUESTS:
            break;
        case REPLICA_LOAD_PROMPT_TOKENS:
            prompt = field.value;
            break;
        case REPLICA_LOAD_CACHED_TOKENS:
            cached = field.value;
            break;
        }
    }
    if (cached > prompt)
        invalid(check, "more cached tokens than tokens");
}

// *unchanged is set if it leans on what was sent before.
static void check_observation(struct check *check, struct span data, struct names *vantages, bool *unchanged)
{
    double events = 0.0, checked = 0.0, violated = 0.0;
    uint64_t ticks = 0;
    bool carries = false;
    struct reader in = message(data, &OBSERVATION_SUMMARY);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum observation_summary_field)field.number) {
        case OBSERVATION_SUMMARY_VANTAGE:
            add_name(check, vantages, field.data);
            break;
        case OBSERVATION_SUMMARY_EVENTS:
            events = finite(check, &field);
            break;
        case OBSERVATION_SUMMARY_CHECKED:
            checked = finite(check, &field);
            break;
        case OBSERVATION_SUMMARY_VIOLATED:
            violated = finite(check, &field);
            break;
        case OBSERVATION_SUMMARY_DEGRADED:
            break;
        case OBSERVATION_SUMMARY_DISTRIBUTION:
            carries = true;
            check_distribution(check, field.data);
            break;
        case OBSERVATION_SUMMARY_OWN_DISTANCE:
            finite(check, &field);
            break;
        case OBSERVATION_SUMMARY_OBJECTS:
            carries = true;
            check_objects(check, field.data);
            break;
        case OBSERVATION_SUMMARY_UNCHANGED_TICKS:
            ticks = field.value;
            break;
        case OBSERVATION_SUMMARY_LOAD:
            check_load(check, field.data);
            break;
        }
    }
    present(check, &in, OBSERVATION_SUMMARY_VANTAGE);
    if (!(events >= 0.0 && violated >= 0.0 && violated <= checked))
        invalid(check, "counts of events or checks that contradict each other");
    if (ticks > MAX_UNCHANGED_TICKS || (ticks && carries))
        invalid(check, "an observation that is unchanged for too long, or unchanged and here");
    *unchanged |= ticks != 0;
}

static void check_vector(struct check *check, struct span data, struct surface_figures *figures)
{
    struct reader in = message(data, &COHERENCE_VECTOR);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum coherence_vector_field)field.number) {
        case COHERENCE_VECTOR_C1:
        case COHERENCE_VECTOR_C2:
        case COHERENCE_VECTOR_C3:
        case COHERENCE_VECTOR_C2_PLAIN:
        case COHERENCE_VECTOR_C4:
            unit(check, real(&field));
            break;
        case COHERENCE_VECTOR_HAMILTONIAN:
            finite(check, &field);
            break;
        case COHERENCE_VECTOR_S:
            figures->s = finite(check, &field);
            break;
        case COHERENCE_VECTOR_FARTHEST:
            figures->farthest = field.data;
            break;
        }
    }
}

static void check_contribution(struct check *check, struct span data)
{
    struct reader in = message(data, &CONTRIBUTION);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum contribution_field)field.number) {
        case CONTRIBUTION_NAME:
            break;
        case CONTRIBUTION_VALUE:
            finite(check, &field);
            break;
        }
    }
    present(check, &in, CONTRIBUTION_NAME);
}

static void check_cutoffs(struct check *check, struct span data)
{
    double watch = 0.0, alarm = 0.0, critical = 0.0;
    struct reader in = message(data, &CUTOFFS);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum cutoffs_field)field.number) {
        case CUTOFFS_WATCH:
            watch = real(&field);
            break;
        case CUTOFFS_ALARM:
            alarm = real(&field);
            break;
        case CUTOFFS_CRITICAL:
            critical = real(&field);
            break;
        case CUTOFFS_MODE:
            break;
        }
    }
    if (!(watch <= alarm && alarm <= critical)) // also refuses NaN; infinity is legal
        invalid(check, "cut-offs that do not rise");
}

static void check_posterior(struct check *check, struct span packed)
{
    double sum = 0.0;
    for (size_t at = 0; at < packed.size; at += sizeof(double)) {
        double value;
        memcpy(&value, packed.at + at, sizeof value);
        sum += unit(check, value);
    }
    if (packed.size != 4 * sizeof(double) || !(fabs(sum - 1.0) <= SUM_TOLERANCE))
        invalid(check, "a posterior that is no distribution over four phases");
}

// *quiet: BAU before and after hysteresis.
static void check_decision(struct check *check, struct span data, struct surface_figures *figures, bool *quiet)
{
    uint64_t phase = PHASE_UNSPECIFIED, raw_phase = PHASE_UNSPECIFIED;
    size_t axes = 0, vantages = 0;
    struct span posterior = {NULL, 0};
    struct reader in = message(data, &DECISION);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum decision_field)field.number) {
        case DECISION_PHASE:
            phase = field.value;
            break;
        case DECISION_RAW_PHASE:
            raw_phase = field.value;
            break;
        case DECISION_POSTERIOR:
            posterior = field.data;
            break;
        case DECISION_D2:
            figures->d2 = finite(check, &field);
            if (figures->d2 < 0.0)
                invalid(check, "a negative squared distance");
            break;
        case DECISION_PHI_D:
        case DECISION_P_VALUE:
            unit(check, real(&field));
            break;
        case DECISION_DOF:
        case DECISION_BASELINE_ID:
            break;
        case DECISION_CUTOFFS:
        case DECISION_S_CUTOFFS:
            check_cutoffs(check, field.data);
            break;
        case DECISION_AXIS_CONTRIBUTIONS:
            axes++;
            check_contribution(check, field.data);
            break;
        case DECISION_VANTAGE_CONTRIBUTIONS:
            vantages++;
            check_contribution(check, field.data);
            break;
        }
    }
    // Phases are numbered without gaps: the build checks it.
    if (phase == PHASE_UNSPECIFIED || phase > PHASE_LAST || raw_phase == PHASE_UNSPECIFIED || raw_phase > PHASE_LAST)
        invalid(check, "a phase that does not exist");
    *quiet = phase == PHASE_BAU && raw_phase == PHASE_BAU;
    figures->phase = (uint8_t)phase;
    check_posterior(check, posterior);
    limit(check, axes, MAX_CONTRIBUTIONS, "too many contributions");
    limit(check, vantages, MAX_CONTRIBUTIONS, "too many contributions");
}

static void check_surface(struct check *check, struct span data, struct names *surfaces,
                          struct surface_figures *figures)
{
    *figures = (struct surface_figures){.phase = PHASE_UNSPECIFIED};
    struct span sorted[MAX_VANTAGES_PER_SURFACE];
    struct names vantages = {0, MAX_VANTAGES_PER_SURFACE, sorted};
    size_t count = 0;
    bool quiet = false, unchanged = false;
    struct reader in = message(data, &SURFACE);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum surface_field)field.number) {
        case SURFACE_NAME:
            add_name(check, surfaces, field.data);
            figures->name = field.data;
            break;
        case SURFACE_VECTOR:
            check_vector(check, field.data, figures);
            break;
        case SURFACE_LATERAL:
            if (field.value > LATERAL_LAST)
                invalid(check, "a lateral label that does not exist");
            break;
        case SURFACE_DECISION:
            check_decision(check, field.data, figures, &quiet);
            break;
        case SURFACE_OBSERVATIONS:
            count++;
            check_observation(check, field.data, &vantages, &unchanged);
            break;
        case SURFACE_MISSING:
            count++;
            if (!field.data.size)
                invalid(check, "an empty name");
            add_name(check, &vantages, field.data);
            break;
        case SURFACE_CALIBRATED_TICKS:
        case SURFACE_NEEDED_TICKS:
            break;
        }
    }
    present(check, &in, SURFACE_NAME);
    limit(check, count, MAX_VANTAGES_PER_SURFACE, "too many vantages");
    if (unchanged && !quiet)
        invalid(check, "an unchanged observation outside BAU");
}

static void check_cause(struct check *check, struct span data, struct names *causes)
{
    struct reader in = message(data, &LOSS_TOTALS_BY_CAUSE_ENTRY);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum loss_totals_by_cause_entry_field)field.number) {
        case LOSS_TOTALS_BY_CAUSE_ENTRY_KEY:
            add_name(check, causes, field.data);
            break;
        case LOSS_TOTALS_BY_CAUSE_ENTRY_VALUE:
            break;
        }
    }
}

static void check_losses(struct check *check, struct span data)
{
    struct span sorted[MAX_LOSS_CAUSES];
    struct names causes = {0, MAX_LOSS_CAUSES, sorted};
    size_t count = 0;
    struct reader in = message(data, &LOSS_TOTALS);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum loss_totals_field)field.number) {
        case LOSS_TOTALS_BY_CAUSE:
            count++;
            check_cause(check, field.data, &causes);
            break;
        }
    }
    limit(check, count, MAX_LOSS_CAUSES, "too many loss causes");
}

static bool is_id_of(struct span id, struct span json)
{
    static const char digits[] = "0123456789abcdef";
    uint8_t digest[SHA256_DIGEST_LENGTH];
    if (id.size != ID_DIGITS)
        return false;
    sha256(json, digest);
    for (size_t i = 0; i < ID_DIGITS; i++)
        if (id.at[i] != digits[i % 2 ? digest[i / 2] & 15 : digest[i / 2] >> 4])
            return false;
    return true;
}

static void check_baseline(struct check *check, struct span data)
{
    struct span id = {NULL, 0}, json = {NULL, 0};
    struct reader in = message(data, &BASELINE);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum baseline_field)field.number) {
        case BASELINE_ID:
            id = field.data;
            break;
        case BASELINE_SURFACE:
            break;
        case BASELINE_JSON:
            json = field.data;
            break;
        }
    }
    present(check, &in, BASELINE_SURFACE);
    limit(check, json.size, MAX_BASELINE_BYTES, "too many bytes in a baseline");
    // Bytes that are refused anyway are not hashed.
    if (check->fault == NO_FAULT && !is_id_of(id, json))
        invalid(check, "a baseline whose id is not the hash of its bytes");
}

static void check_extension(struct check *check, struct span data, struct names *extensions)
{
    struct reader in = message(data, &SNAPSHOT_EXTENSIONS_ENTRY);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum snapshot_extensions_entry_field)field.number) {
        case SNAPSHOT_EXTENSIONS_ENTRY_KEY:
            add_name(check, extensions, field.data);
            break;
        case SNAPSHOT_EXTENSIONS_ENTRY_VALUE:
            limit(check, field.data.size, MAX_EXTENSION_BYTES, "too many bytes in an extension");
            break;
        }
    }
}

static void check_time(struct check *check, const struct claims *claims, uint64_t tick, uint64_t time_ns,
                       uint64_t period_ns)
{
    if (period_ns < MIN_PERIOD_NS || period_ns > MAX_PERIOD_NS)
        invalid(check, "a tick period that is not allowed");
    if ((unsigned __int128)tick * period_ns != time_ns)
        invalid(check, "the tick is not on the lattice t = k * T_tick");
    // The header's time is checked against now; this ties the tick to it (T-RC-1's sequence rule).
    __int128 lateness = (__int128)claims->time_ns - time_ns;
    if (lateness > (__int128)claims->past_ns || lateness < -(__int128)claims->future_ns)
        invalid(check, "sealed too long after its tick, or before it");
}

int check_snapshot(struct span body, const struct claims *claims, is_printable *printable, void *context,
                   struct refusal *out, struct figures *figures)
{
    struct surface_figures beyond; // of surfaces over the limit
    struct check check = {printable, context, false, NO_FAULT, ""};
    struct span sorted_surfaces[MAX_SURFACES], sorted_extensions[MAX_EXTENSIONS];
    struct names surfaces = {0, MAX_SURFACES, sorted_surfaces}, extensions = {0, MAX_EXTENSIONS, sorted_extensions};
    size_t surface_count = 0, extension_count = 0, baseline_count = 0;
    uint64_t schema_version = 0, tick = 0, time_ns = 0, period_ns = 0;
    struct span vantage_id = {NULL, 0};
    figures->lateness_ns = 0;
    figures->lead = vantage_id;
    struct reader in = message(body, &SNAPSHOT);
    struct field field;
    while (next(&check, &in, &field)) {
        switch ((enum snapshot_field)field.number) {
        case SNAPSHOT_SCHEMA_VERSION:
            schema_version = field.value;
            break;
        case SNAPSHOT_VANTAGE_ID:
            vantage_id = field.data;
            break;
        case SNAPSHOT_TICK:
            tick = field.value;
            break;
        case SNAPSHOT_TICK_TIME_NS:
            time_ns = field.value;
            break;
        case SNAPSHOT_TICK_PERIOD_NS:
            period_ns = field.value;
            break;
        case SNAPSHOT_LATENESS_NS:
            figures->lateness_ns = field.value;
            break;
        case SNAPSHOT_LEAD:
            figures->lead = field.data;
            break;
        case SNAPSHOT_AGENT_VERSION:
            break;
        case SNAPSHOT_SURFACES:
            check_surface(&check, field.data, &surfaces,
                          surface_count < MAX_SURFACES ? &figures->surfaces[surface_count] : &beyond);
            surface_count++;
            break;
        case SNAPSHOT_LOSSES:
            check_losses(&check, field.data);
            break;
        case SNAPSHOT_BASELINES:
            baseline_count++;
            check_baseline(&check, field.data);
            break;
        case SNAPSHOT_EXTENSIONS:
            extension_count++;
            check_extension(&check, field.data, &extensions);
            break;
        }
    }
    if (check.stopped)
        return -1;
    if (schema_version != SCHEMA_VERSION)
        refuse(&check, UNKNOWN_SCHEMA_VERSION, "a schema version this broker does not know");
    if (compare(vantage_id, claims->vantage_id) != 0 || tick != claims->tick)
        refuse(&check, HEADER_MISMATCH, "header and body name different vantages or ticks");
    check_time(&check, claims, tick, time_ns, period_ns);
    limit(&check, surface_count, MAX_SURFACES, "too many surfaces");
    limit(&check, baseline_count, MAX_BASELINES, "too many baselines");
    limit(&check, extension_count, MAX_EXTENSIONS, "too many extensions");
    figures->tick_period_ns = period_ns;
    figures->baselines = (uint32_t)baseline_count;
    figures->extensions = (uint32_t)extension_count;
    figures->surface_count = (uint32_t)(surface_count < MAX_SURFACES ? surface_count : MAX_SURFACES);
    *out = (struct refusal){REASONS[check.fault], check.detail};
    return 0;
}

// An accepted body is read again: every text in it was looked at.
static int is_printable_again(void *context, struct span text)
{
    (void)context;
    (void)text;
    return 1;
}

static bool observation_of(struct check *check, struct span data, on_observation *found, void *context)
{
    struct observation one = {.vantage = {NULL, 0}, .distribution = {NULL, 0}};
    bool said = false;
    struct reader in = message(data, &OBSERVATION_SUMMARY);
    struct field field;
    while (next(check, &in, &field)) {
        switch ((enum observation_summary_field)field.number) {
        case OBSERVATION_SUMMARY_VANTAGE:
            one.vantage = field.data;
            break;
        case OBSERVATION_SUMMARY_EVENTS:
            one.events = real(&field);
            break;
        case OBSERVATION_SUMMARY_CHECKED:
            one.checked = real(&field);
            break;
        case OBSERVATION_SUMMARY_VIOLATED:
            one.violated = real(&field);
            break;
        case OBSERVATION_SUMMARY_DISTRIBUTION:
            one.distribution = field.data;
            break;
        case OBSERVATION_SUMMARY_OWN_DISTANCE:
            one.own_distance = real(&field);
            said = true;
            break;
        case OBSERVATION_SUMMARY_UNCHANGED_TICKS:
            one.unchanged = field.value;
            break;
        case OBSERVATION_SUMMARY_DEGRADED:
        case OBSERVATION_SUMMARY_OBJECTS:
        case OBSERVATION_SUMMARY_LOAD:
            break;
        }
    }
    return !said || found(context, &one);
}

bool each_observation(struct span body, on_observation *found, void *context)
{
    struct check check = {is_printable_again, NULL, false, NO_FAULT, ""};
    struct reader in = message(body, &SNAPSHOT);
    struct field field, inner;
    while (next(&check, &in, &field)) {
        if (field.number != SNAPSHOT_SURFACES)
            continue;
        struct reader surface = message(field.data, &SURFACE);
        while (next(&check, &surface, &inner))
            if (inner.number == SURFACE_OBSERVATIONS && !observation_of(&check, inner.data, found, context))
                return false;
    }
    return true;
}
