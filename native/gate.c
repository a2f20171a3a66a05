// SPDX-License-Identifier: Apache-2.0
//
// The Python module mvps.trust._gate; what it does is described in mvps/trust/_gate.pyi.
//
// Python sees these objects and no pointer of ours: HmacKey (a key), Gate (who was heard, with what counters), Batch
// (what a gate said about one message, item by item). Runs of items whose HMAC keys are held are hashed and read with
// the interpreter's lock released; a gate refuses to be used meanwhile, and from inside the resolver of an unknown key,
// which is the one place where Python code runs in between.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

#include "envelope.h"
#include "header.h"
#include "hmac.h"
#include "merkle.h"
#include "snapshot.h"

#define TAG_OF_SCHEME(scheme) ((scheme) == SCHEME_HMAC_SHA256 ? TAG_BYTES : SIGNATURE_BYTES)
// float64 of one observation in what Batch.observations gives: mvps/trust/_gate.pyi names them.
#define OBSERVATION_FIGURES 6

_Static_assert(TAG_BYTES == SHA256_DIGEST_LENGTH, "the tag of scheme 1 is a whole SHA-256 digest");

struct state {
    PyObject *header_type, *refusal_type, *judged_type, *hmac_type, *vantage_type;
    PyObject *batch_type, *run_type, *figures_type, *surface_type;
    PyObject *reasons[REASON_OTHER + 1];
    // Interned once: a name that is made anew for every look-up pushes others out of the interpreter's method cache.
    PyObject *key_id, *scheme, *holds, *isprintable;
};

struct hmac_object {
    PyObject_HEAD struct hmac_key key;
    uint8_t key_id[KEY_ID_BYTES];
};

// Counters of one lane: what the store has, and what was admitted. heard: whether there is any.
struct lane {
    uint64_t committed, highest;
    bool was_committed, heard;
};

// One vantage in one epoch. key: NULL while it is not held.
struct epoch {
    uint64_t id;
    PyObject *key, *key_id; // an HmacKey or any other sealing key; its id as bytes
    bool native;
    uint8_t scheme;
    uint64_t from_ns, until_ns, retire_ns;
    uint64_t tick_ns; // no snapshot may have a shorter period
    struct lane lanes[2];
};

struct vantage {
    PyObject_HEAD PyObject *name;
    size_t count, capacity;
    struct epoch *epochs; // the one heard last is the first
};

struct gate {
    PyObject_HEAD PyObject *resolve;
    PyObject *vantages; // id as bytes -> struct vantage
    uint64_t live_past_ns, backfill_past_ns, future_ns;
    uint64_t backfill_from_ns; // sealing time; what came before may be forgotten already
    Py_ssize_t max_vantages;
    bool busy;
};

// One sealed snapshot and what is known of it. vantage: owned; NULL unless the seal holds. refused: owned, why it does
// not. Of one whose seal holds, `fresh` says that its counter is new and spent by this, `repeat` that it was seen
// before and the store has yet to say what it was; `refusal` is why it does not count.
struct item {
    struct sealed sealed;
    struct header header;
    struct vantage *vantage;
    PyObject *refused;
    const struct hmac_key *key; // while it is judged
    bool holds, read, fresh, repeat, duplicate;
    bool is_leaf; // whether its leaf will be asked for
    struct refusal refusal;
    uint8_t leaf[HASH_BYTES];
    struct figures figures; // of a body that was read and is accepted
};

static struct span span_of(PyObject *bytes)
{
    return (struct span){(const uint8_t *)PyBytes_AsString(bytes), (size_t)PyBytes_Size(bytes)};
}

static void free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyObject *new_object(PyTypeObject *type)
{
    return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
}

static int as_u64(PyObject *number, uint64_t *out)
{
    *out = PyLong_AsUnsignedLongLong(number);
    return *out == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

// ---- rows: named tuples, made as their own _make() does it

// Takes the references in `fields`, also where one of them is NULL after an error.
static PyObject *row(PyObject *type, Py_ssize_t count, PyObject *const *fields)
{
    PyObject *values = PyTuple_New(count), *arguments = NULL, *made = NULL;
    bool whole = values != NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        whole = whole && fields[i];
        if (values)
            PyTuple_SetItem(values, i, fields[i]);
        else
            Py_XDECREF(fields[i]);
    }
    if (whole && (arguments = PyTuple_New(1))) {
        PyTuple_SetItem(arguments, 0, values);
        newfunc new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
        made = new_tuple((PyTypeObject *)type, arguments, NULL);
        Py_DECREF(arguments);
    } else {
        Py_XDECREF(values);
    }
    return made;
}

static PyObject *header_row(const struct state *state, const struct header *header, PyObject *name)
{
    PyObject *fields[] = {
        PyLong_FromLong(header->scheme),
        PyLong_FromLong(header->purpose),
        PyLong_FromLong(header->lane),
        PyLong_FromUnsignedLong(header->body_bytes),
        PyLong_FromUnsignedLongLong(header->epoch_id),
        PyLong_FromUnsignedLongLong(header->counter),
        PyLong_FromUnsignedLongLong(header->tick),
        PyLong_FromUnsignedLongLong(header->time_ns),
        PyBytes_FromStringAndSize((const char *)header->key_id, KEY_ID_BYTES),
        Py_NewRef(name),
    };
    return row(state->header_type, sizeof fields / sizeof *fields, fields);
}

// Takes the reference to `detail`.
static PyObject *refusal_row(const struct state *state, enum reason reason, PyObject *detail)
{
    PyObject *fields[] = {Py_NewRef(state->reasons[reason]), detail};
    return row(state->refusal_type, 2, fields);
}

static PyObject *static_refusal(const struct state *state, struct refusal refusal)
{
    return refusal_row(state, refusal.reason, PyUnicode_FromString(refusal.detail));
}

static PyObject *name_of(struct span id)
{
    return PyUnicode_FromStringAndSize((const char *)id.at, (Py_ssize_t)id.size);
}

// ---- HmacKey

static PyObject *hmac_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"key", "key_id", NULL};
    PyObject *key, *key_id;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "SS", names, &key, &key_id))
        return NULL;
    if (PyBytes_Size(key_id) != KEY_ID_BYTES) {
        PyErr_Format(PyExc_ValueError, "a key id has %d bytes, not %zd", KEY_ID_BYTES, PyBytes_Size(key_id));
        return NULL;
    }
    struct hmac_object *self = (struct hmac_object *)new_object(type);
    if (self) {
        hmac_init(&self->key, span_of(key));
        memcpy(self->key_id, PyBytes_AsString(key_id), KEY_ID_BYTES);
    }
    return (PyObject *)self;
}

static void hmac_free(PyObject *self)
{
    OPENSSL_cleanse(&((struct hmac_object *)self)->key, sizeof(struct hmac_key));
    free_object(self);
}

static bool all_bytes(PyObject *const *arguments, Py_ssize_t given, Py_ssize_t wanted)
{
    if (given != wanted) {
        PyErr_Format(PyExc_TypeError, "%zd arguments expected, %zd given", wanted, given);
        return false;
    }
    for (Py_ssize_t i = 0; i < given; i++) {
        if (!PyBytes_Check(arguments[i])) {
            PyErr_SetString(PyExc_TypeError, "header, body and tag must be bytes");
            return false;
        }
    }
    return true;
}

static PyObject *hmac_tag_method(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    uint8_t tag[TAG_BYTES];
    if (!all_bytes(arguments, count, 2))
        return NULL;
    hmac_tag(&((struct hmac_object *)self)->key, span_of(arguments[0]), span_of(arguments[1]), tag);
    return PyBytes_FromStringAndSize((const char *)tag, sizeof tag);
}

static PyObject *hmac_holds_method(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (!all_bytes(arguments, count, 3))
        return NULL;
    struct span header = span_of(arguments[0]), body = span_of(arguments[1]), tag = span_of(arguments[2]);
    return PyBool_FromLong(hmac_holds(&((struct hmac_object *)self)->key, header, body, tag));
}

static PyObject *hmac_key_id(PyObject *self, void *unused)
{
    (void)unused;
    return PyBytes_FromStringAndSize((const char *)((struct hmac_object *)self)->key_id, KEY_ID_BYTES);
}

static PyObject *hmac_scheme(PyObject *self, void *unused)
{
    (void)self, (void)unused;
    return PyLong_FromLong(SCHEME_HMAC_SHA256);
}

static PyMethodDef hmac_methods[] = {
    {"tag", (PyCFunction)(void (*)(void))hmac_tag_method, METH_FASTCALL, NULL},
    {"holds", (PyCFunction)(void (*)(void))hmac_holds_method, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef hmac_fields[] = {
    {"key_id", hmac_key_id, NULL, NULL, NULL},
    {"scheme", hmac_scheme, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot hmac_slots[] = {
    {Py_tp_new, hmac_new},
    {Py_tp_dealloc, hmac_free},
    {Py_tp_methods, hmac_methods},
    {Py_tp_getset, hmac_fields},
    {0, NULL},
};

// Open to subclasses, which may say more about a key, but not judge otherwise: the gate calls the C function.
static PyType_Spec hmac_spec = {
    "mvps.trust._gate.HmacKey",
    sizeof(struct hmac_object),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    hmac_slots,
};

// ---- vantages

static void drop_key(struct epoch *epoch)
{
    Py_CLEAR(epoch->key);
    Py_CLEAR(epoch->key_id);
}

static void vantage_free(PyObject *self)
{
    struct vantage *vantage = (struct vantage *)self;
    for (size_t i = 0; i < vantage->count; i++)
        drop_key(&vantage->epochs[i]);
    PyMem_Free(vantage->epochs);
    Py_CLEAR(vantage->name);
    free_object(self);
}

static PyType_Slot vantage_slots[] = {
    {Py_tp_dealloc, vantage_free},
    {0, NULL},
};

static PyType_Spec vantage_spec = {
    "mvps.trust._gate.Vantage",
    sizeof(struct vantage),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    vantage_slots,
};

// Borrowed; NULL without an error set: not known.
static struct vantage *find_vantage(struct gate *gate, PyObject *id)
{
    return (struct vantage *)PyDict_GetItemWithError(gate->vantages, id);
}

// Moves what it finds to the front.
static struct epoch *find_epoch(struct vantage *vantage, uint64_t id)
{
    for (size_t i = 0; i < vantage->count; i++) {
        if (vantage->epochs[i].id == id) {
            struct epoch found = vantage->epochs[i];
            vantage->epochs[i] = vantage->epochs[0];
            vantage->epochs[0] = found;
            return vantage->epochs;
        }
    }
    return NULL;
}

static struct epoch *add_epoch(struct vantage *vantage, uint64_t id)
{
    if (vantage->count == vantage->capacity) {
        size_t capacity = vantage->capacity ? 2 * vantage->capacity : 1;
        struct epoch *more = PyMem_Realloc(vantage->epochs, capacity * sizeof *more);
        if (!more) {
            PyErr_NoMemory();
            return NULL;
        }
        vantage->epochs = more;
        vantage->capacity = capacity;
    }
    struct epoch *added = &vantage->epochs[vantage->count++];
    *added = (struct epoch){.id = id};
    return find_epoch(vantage, id);
}

// Borrowed; NULL after an error.
static struct vantage *add_vantage(struct gate *gate, const struct state *state, PyObject *id, PyObject *name)
{
    struct vantage *vantage = (struct vantage *)new_object((PyTypeObject *)state->vantage_type);
    if (!vantage)
        return NULL;
    vantage->name = Py_NewRef(name);
    int failed = PyDict_SetItem(gate->vantages, id, (PyObject *)vantage);
    Py_DECREF(vantage); // the dictionary's from now on
    return failed ? NULL : vantage;
}

// ---- Gate

static struct state *state_of(PyObject *self)
{
    return PyType_GetModuleState(Py_TYPE(self));
}

static PyObject *gate_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"resolve", "live_past_ns", "backfill_past_ns", "future_ns", "max_vantages", NULL};
    PyObject *resolve, *live, *backfill, *future;
    Py_ssize_t most;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOOOn", names, &resolve, &live, &backfill, &future, &most))
        return NULL;
    struct gate *self = (struct gate *)new_object(type);
    if (!self)
        return NULL;
    self->resolve = Py_NewRef(resolve);
    self->max_vantages = most;
    self->vantages = PyDict_New();
    if (!self->vantages || as_u64(live, &self->live_past_ns) || as_u64(backfill, &self->backfill_past_ns) ||
        as_u64(future, &self->future_ns))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int gate_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((struct gate *)self)->resolve);
    Py_VISIT(((struct gate *)self)->vantages);
    return 0;
}

static int gate_clear(PyObject *self)
{
    Py_CLEAR(((struct gate *)self)->resolve);
    Py_CLEAR(((struct gate *)self)->vantages);
    return 0;
}

static void gate_free(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    gate_clear(self);
    free_object(self);
}

static bool not_busy(const struct gate *gate)
{
    if (gate->busy)
        PyErr_SetString(PyExc_RuntimeError, "a gate cannot be used again while it is in use");
    return !gate->busy;
}

static PyObject *ask(struct gate *gate, PyObject *name, uint64_t epoch_id)
{
    PyObject *number = PyLong_FromUnsignedLongLong(epoch_id);
    PyObject *answer = number ? PyObject_CallFunctionObjArgs(gate->resolve, name, number, NULL) : NULL;
    Py_XDECREF(number);
    return answer;
}

// What a resolver answered, as an epoch that owns its references; -1 with an error set where it is no such answer.
static int take_key(const struct state *state, PyObject *answer, struct epoch *epoch)
{
    if (!PyTuple_Check(answer) || PyTuple_Size(answer) != 5) {
        PyErr_SetString(PyExc_TypeError,
                        "a resolver answers a Refusal or (key, from_ns, until_ns, retire_ns, tick_ns)");
        return -1;
    }
    PyObject *key = PyTuple_GetItem(answer, 0), *scheme = NULL;
    if (as_u64(PyTuple_GetItem(answer, 1), &epoch->from_ns) || as_u64(PyTuple_GetItem(answer, 2), &epoch->until_ns) ||
        as_u64(PyTuple_GetItem(answer, 3), &epoch->retire_ns) || as_u64(PyTuple_GetItem(answer, 4), &epoch->tick_ns))
        return -1;
    epoch->key_id = PyObject_GetAttr(key, state->key_id);
    if (!epoch->key_id || !(scheme = PyObject_GetAttr(key, state->scheme)))
        return -1;
    uint64_t number;
    int failed = as_u64(scheme, &number);
    Py_DECREF(scheme);
    epoch->native = PyObject_TypeCheck(key, (PyTypeObject *)state->hmac_type);
    if (!failed && (!PyBytes_Check(epoch->key_id) || PyBytes_Size(epoch->key_id) != KEY_ID_BYTES ||
                    number > UINT8_MAX || (epoch->native && number != SCHEME_HMAC_SHA256))) {
        PyErr_SetString(PyExc_TypeError, "a sealing key has a scheme and a key id of 8 bytes");
        failed = -1;
    }
    if (failed)
        return -1;
    epoch->scheme = (uint8_t)number;
    epoch->key = Py_NewRef(key);
    return 0;
}

static const struct hmac_key *native_key(const struct epoch *epoch)
{
    return &((struct hmac_object *)epoch->key)->key;
}

static PyObject *bytes_of(struct span span)
{
    return PyBytes_FromStringAndSize((const char *)span.at, (Py_ssize_t)span.size);
}

static PyObject *sealed_tuple(const struct sealed *sealed)
{
    PyObject *made = PyTuple_New(3), *part;
    const struct span *parts[] = {&sealed->header, &sealed->body, &sealed->tag};
    for (Py_ssize_t i = 0; made && i < 3; i++) {
        if ((part = bytes_of(*parts[i])))
            PyTuple_SetItem(made, i, part);
        else
            Py_CLEAR(made);
    }
    return made;
}

// 1: the tag is the message's; 0: it is not; -1: an error is set.
static int seal_holds(const struct state *state, const struct epoch *epoch, const struct sealed *sealed)
{
    if (epoch->native)
        return hmac_holds(native_key(epoch), sealed->header, sealed->body, sealed->tag);
    PyObject *parts = sealed_tuple(sealed);
    PyObject *answer = parts ? PyObject_CallMethodObjArgs(epoch->key, state->holds, PyTuple_GetItem(parts, 0),
                                                          PyTuple_GetItem(parts, 1), PyTuple_GetItem(parts, 2), NULL)
                             : NULL;
    int holds = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(parts);
    Py_XDECREF(answer);
    return holds;
}

static void write_hex(const uint8_t id[KEY_ID_BYTES], char out[2 * KEY_ID_BYTES + 1])
{
    for (size_t i = 0; i < KEY_ID_BYTES; i++) {
        out[2 * i] = "0123456789abcdef"[id[i] >> 4];
        out[2 * i + 1] = "0123456789abcdef"[id[i] & 15];
    }
    out[2 * KEY_ID_BYTES] = 0;
}

// Nothing vouches for this item. Takes the reference to `refusal`; -1 where making it failed.
static int not_vouched(struct item *item, PyObject *refusal)
{
    item->refused = refusal;
    return refusal ? 0 : -1;
}

static int not_vouched_as(const struct state *state, struct item *item, enum reason reason, const char *detail)
{
    return not_vouched(item, static_refusal(state, (struct refusal){reason, detail}));
}

static int other_key(const struct state *state, struct item *item, const struct epoch *epoch, PyObject *name)
{
    char theirs[2 * KEY_ID_BYTES + 1], ours[2 * KEY_ID_BYTES + 1];
    write_hex(item->header.key_id, theirs);
    write_hex(span_of(epoch->key_id).at, ours);
    PyObject *detail = PyUnicode_FromFormat("sealed for %U with key %s, epoch %llu names %s: enrol the key that is in "
                                            "use, or go back to the one that is enrolled",
                                            name, theirs, (unsigned long long)item->header.epoch_id, ours);
    return not_vouched(item, refusal_row(state, REASON_UNKNOWN_KEY, detail));
}

static int bad_seal(const struct state *state, struct item *item, PyObject *name)
{
    return not_vouched(item,
                       refusal_row(state, REASON_BAD_SEAL, PyUnicode_FromFormat("the seal of %U does not hold", name)));
}

static bool fits_key(const struct item *item, const struct epoch *epoch)
{
    return item->header.scheme == epoch->scheme && item->sealed.tag.size == TAG_OF_SCHEME(item->header.scheme) &&
           memcmp(span_of(epoch->key_id).at, item->header.key_id, KEY_ID_BYTES) == 0;
}

// Sets item->holds only if the seal holds; otherwise item->refused says why not. -1 after an error.
static int check_seal(const struct state *state, struct item *item, const struct epoch *epoch, PyObject *name)
{
    const struct header *header = &item->header;
    if (header->scheme != epoch->scheme) {
        PyObject *detail =
            PyUnicode_FromFormat("%U seals by scheme %d, epoch %llu has scheme %d: give both sides the "
                                 "same manifest",
                                 name, header->scheme, (unsigned long long)header->epoch_id, epoch->scheme);
        return not_vouched(item, refusal_row(state, REASON_WRONG_SCHEME, detail));
    }
    if (item->sealed.tag.size != TAG_OF_SCHEME(header->scheme))
        return not_vouched_as(state, item, REASON_BAD_LENGTH, "the tag has not the length of its scheme");
    if (!fits_key(item, epoch))
        return other_key(state, item, epoch, name);
    int holds = seal_holds(state, epoch, &item->sealed);
    if (holds == 0)
        return bad_seal(state, item, name);
    item->holds = holds == 1;
    return holds < 0 ? -1 : 0;
}

// Why a new counter does not count; reason 0 if it does.
static struct refusal check_time(const struct gate *gate, const struct epoch *epoch, const struct header *header,
                                 uint64_t now_ns)
{
    bool live = header->lane == LANE_LIVE;
    __int128 age = (__int128)now_ns - header->time_ns;
    if (age > (__int128)(live ? gate->live_past_ns : gate->backfill_past_ns))
        return (struct refusal){REASON_STALE, "sealed too long ago"};
    if (!live && header->time_ns < gate->backfill_from_ns)
        return (struct refusal){REASON_STALE, "sealed before something that is no longer kept"};
    if (age < -(__int128)gate->future_ns)
        return (struct refusal){REASON_FUTURE, "sealed in the future: one of the two clocks is wrong"};
    // What was sealed before retirement and comes long after it is stale by now.
    bool valid = header->time_ns >= epoch->from_ns && header->time_ns < epoch->until_ns &&
                 !(live && header->time_ns >= epoch->retire_ns);
    if (!valid)
        return (struct refusal){REASON_EPOCH_RETIRED, "sealed outside the time in which its epoch counts"};
    return (struct refusal){REASON_NONE, ""};
}

static int is_printable_text(void *context, struct span text)
{
    const struct state *state = context;
    PyObject *decoded = PyUnicode_DecodeUTF8((const char *)text.at, (Py_ssize_t)text.size, NULL);
    PyObject *answer = decoded ? PyObject_CallMethodObjArgs(decoded, state->isprintable, NULL) : NULL;
    int printable = answer ? answer == Py_True : -1;
    Py_XDECREF(decoded);
    Py_XDECREF(answer);
    return printable;
}

// Without the interpreter's lock nobody can be asked: the body is read again with it.
static int is_printable_later(void *context, struct span text)
{
    (void)context, (void)text;
    return -1;
}

// Reads the body and, of one that is in order, hashes the leaf. Needs no lock where `printable` needs none.
static int read_item(const struct gate *gate, struct item *item, is_printable *printable, void *context)
{
    const struct header *header = &item->header;
    struct claims claims = {header->vantage_id, header->tick, header->time_ns, gate->live_past_ns, gate->future_ns};
    if (check_snapshot(item->sealed.body, &claims, printable, context, &item->refusal, &item->figures))
        return -1;
    item->read = true;
    if (!item->refusal.reason && item->is_leaf)
        leaf_hash(item->sealed.header, item->sealed.body, item->sealed.tag, item->leaf);
    return 0;
}

// Of an item whose seal holds: counter, then time, then body.
static int judge_vouched(const struct gate *gate, const struct state *state, struct vantage *vantage,
                         struct epoch *epoch, struct item *item, uint64_t now_ns)
{
    item->vantage = (struct vantage *)Py_NewRef((PyObject *)vantage);
    struct lane *lane = &epoch->lanes[item->header.lane - LANE_LIVE];
    // Counter first: a duplicate of an accepted snapshot is a duplicate however old it has become.
    if (lane->heard && item->header.counter <= lane->highest) {
        item->repeat = true;
        item->refusal = (struct refusal){REASON_NONE, ""};
        return 0;
    }
    struct refusal late = check_time(gate, epoch, &item->header, now_ns);
    if (late.reason) {
        item->refusal = late;
        return 0;
    }
    if (!item->read && read_item(gate, item, is_printable_text, (void *)state))
        return -1;
    if (!item->refusal.reason && item->figures.tick_period_ns < epoch->tick_ns)
        item->refusal = (struct refusal){REASON_INVALID_VALUE, "a tick period below that of its epoch"};
    item->fresh = true;
    lane->heard = true;
    lane->highest = item->header.counter;
    return 0;
}

// The state of a vantage in an epoch whose seal held for the first time; it takes over the references of `resolved`.
// False with item->refused set, or after an error.
static bool keep(struct gate *gate, const struct state *state, struct epoch *resolved, PyObject *id, PyObject *name,
                 struct item *item, struct vantage **kept, struct epoch **in)
{
    struct vantage *vantage = find_vantage(gate, id);
    if (!vantage && !PyErr_Occurred()) {
        if (PyDict_Size(gate->vantages) >= gate->max_vantages) {
            PyObject *detail =
                PyUnicode_FromFormat("this broker keeps %zd vantages: raise max_vantages", gate->max_vantages);
            not_vouched(item, refusal_row(state, REASON_TOO_MANY_VANTAGES, detail));
            return false;
        }
        vantage = add_vantage(gate, state, id, name);
    }
    if (!vantage)
        return false;
    struct epoch *epoch = find_epoch(vantage, resolved->id);
    if (!epoch)
        epoch = add_epoch(vantage, resolved->id);
    if (!epoch)
        return false;
    memcpy(resolved->lanes, epoch->lanes, sizeof epoch->lanes);
    *epoch = *resolved;
    resolved->key = resolved->key_id = NULL;
    *kept = vantage;
    *in = epoch;
    return true;
}

// An item whose key the gate does not hold: it is kept once a seal held under it, and not before, since names that
// nobody can seal for must not fill the memory.
static int judge_unknown(struct gate *gate, const struct state *state, struct item *item, PyObject *id, uint64_t now_ns)
{
    struct epoch resolved = {.id = item->header.epoch_id}, *epoch = NULL;
    struct vantage *vantage = NULL;
    PyObject *name = name_of(item->header.vantage_id);
    PyObject *answer = name ? ask(gate, name, item->header.epoch_id) : NULL;
    int failed = -1;
    if (!answer)
        goto done;
    if (PyObject_TypeCheck(answer, (PyTypeObject *)state->refusal_type)) {
        failed = not_vouched(item, Py_NewRef(answer));
        goto done;
    }
    if (take_key(state, answer, &resolved) || check_seal(state, item, &resolved, name))
        goto done;
    if (item->holds && keep(gate, state, &resolved, id, name, item, &vantage, &epoch))
        failed = judge_vouched(gate, state, vantage, epoch, item, now_ns);
    else
        failed = item->refused ? 0 : -1;
done:
    drop_key(&resolved);
    Py_XDECREF(answer);
    Py_XDECREF(name);
    return failed;
}

// Any item, with the lock held all the time.
static int judge_alone(struct gate *gate, const struct state *state, struct item *item, uint64_t now_ns)
{
    struct refusal refusal = parse_header(item->sealed.header, &item->header);
    if (refusal.reason)
        return not_vouched(item, static_refusal(state, refusal));
    if (item->header.purpose != PURPOSE_SNAPSHOT)
        return not_vouched_as(state, item, REASON_WRONG_PURPOSE, "sealed for another purpose than snapshot");
    if (item->sealed.body.size != item->header.body_bytes)
        return not_vouched_as(state, item, REASON_BAD_LENGTH, "the body has another length than the header says");
    PyObject *id = bytes_of(item->header.vantage_id);
    if (!id)
        return -1;
    int failed = -1;
    struct vantage *vantage = find_vantage(gate, id);
    struct epoch *epoch = vantage ? find_epoch(vantage, item->header.epoch_id) : NULL;
    if (epoch && epoch->key) {
        failed = check_seal(state, item, epoch, vantage->name);
        if (!failed && item->holds)
            failed = judge_vouched(gate, state, vantage, epoch, item, now_ns);
    } else if (!PyErr_Occurred()) {
        failed = judge_unknown(gate, state, item, id, now_ns);
    }
    Py_DECREF(id);
    return failed;
}

// Items that go together through seal, body and leaf, the lock released: those under an HMAC key that is held, and with
// nothing wrong before the seal.
#define TOGETHER 8 // fewer are not worth giving up the lock for: getting it back may take another thread's time slice

struct place {
    struct vantage *vantage;
    struct span name;
};

// Whether an item goes together with others. -1 after an error.
static int prepare(struct gate *gate, struct item *item, struct place *last)
{
    struct header *header = &item->header;
    if (parse_header(item->sealed.header, header).reason || header->purpose != PURPOSE_SNAPSHOT ||
        item->sealed.body.size != header->body_bytes)
        return 0;
    struct span id = header->vantage_id;
    if (!last->vantage || last->name.size != id.size || memcmp(last->name.at, id.at, id.size) != 0) {
        PyObject *key = bytes_of(id);
        if (!key)
            return -1;
        struct vantage *vantage = find_vantage(gate, key);
        Py_DECREF(key);
        if (!vantage)
            return PyErr_Occurred() ? -1 : 0;
        *last = (struct place){vantage, id};
    }
    struct epoch *epoch = find_epoch(last->vantage, header->epoch_id);
    if (!epoch || !epoch->key || !epoch->native || !fits_key(item, epoch))
        return 0;
    item->vantage = last->vantage; // borrowed until it is vouched for
    item->key = native_key(epoch);
    // What is surely a repeat needs no reading.
    const struct lane *lane = &epoch->lanes[header->lane - LANE_LIVE];
    item->repeat = lane->heard && header->counter <= lane->highest;
    return 1;
}

// Up to and including the first whose seal does not hold; how many that are.
static size_t verify_together(const struct gate *gate, struct item *items, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct item *item = &items[i];
        const struct sealed *sealed = &item->sealed;
        item->holds = hmac_holds(item->key, sealed->header, sealed->body, sealed->tag);
        if (!item->holds)
            return i + 1;
        if (!item->repeat)
            read_item(gate, item, is_printable_later, NULL);
    }
    return count;
}

// How many of the items were judged; -1 after an error. The last one may be one that nothing vouches for.
static Py_ssize_t judge_together(struct gate *gate, const struct state *state, struct item *items, size_t count,
                                 uint64_t now_ns)
{
    size_t verified;
    if (count < TOGETHER) {
        verified = verify_together(gate, items, count);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        verified = verify_together(gate, items, count);
        Py_END_ALLOW_THREADS;
    }
    for (size_t i = 0; i < count; i++) { // what was borrowed is given back before anything can fail
        items[i].repeat = false;
        if (i >= verified || !items[i].holds)
            items[i].key = NULL;
    }
    Py_ssize_t done = 0;
    int failed = 0;
    for (size_t i = 0; i < count; i++) {
        struct item *item = &items[i];
        struct vantage *vantage = item->vantage;
        item->vantage = NULL;
        if (failed || i >= verified)
            continue;
        if (item->holds)
            failed = judge_vouched(gate, state, vantage, find_epoch(vantage, item->header.epoch_id), item, now_ns);
        else
            failed = bad_seal(state, item, vantage->name);
        done++;
    }
    return failed ? -1 : done;
}

static void free_items(struct item *items, size_t count)
{
    for (size_t i = 0; items && i < count; i++) {
        Py_XDECREF((PyObject *)items[i].vantage);
        Py_XDECREF(items[i].refused);
    }
    PyMem_Free(items);
}

// How many items were judged, up to and including the first that nothing vouches for: what follows spends no counter,
// since its sender sends it again, and in order. -1 after an error.
static Py_ssize_t judge_items(struct gate *gate, const struct state *state, struct item *items, size_t count,
                              uint64_t now_ns)
{
    size_t judged = 0;
    bool failed = false;
    gate->busy = true;
    while (judged < count && !failed) {
        struct place last = {NULL, {NULL, 0}};
        size_t end = judged;
        int fast = 1;
        while (end < count && (fast = prepare(gate, &items[end], &last)) == 1)
            end++;
        if (fast < 0) {
            for (size_t i = judged; i < end; i++)
                items[i].vantage = NULL;
            failed = true;
        } else if (end > judged) {
            Py_ssize_t done = judge_together(gate, state, items + judged, end - judged, now_ns);
            failed = done < 0;
            judged += failed ? 0 : (size_t)done;
        } else {
            failed = judge_alone(gate, state, &items[judged], now_ns) != 0;
            judged += !failed;
        }
        if (!failed && items[judged - 1].refused)
            break;
    }
    gate->busy = false;
    return failed ? -1 : (Py_ssize_t)judged;
}

// ---- items one by one, as Python objects

static bool all_sealed(PyObject *items)
{
    for (Py_ssize_t i = 0, count = PyTuple_Size(items); i < count; i++) {
        PyObject *item = PyTuple_GetItem(items, i);
        bool whole = PyTuple_Check(item) && PyTuple_Size(item) == 3;
        for (Py_ssize_t part = 0; whole && part < 3; part++)
            whole = PyBytes_Check(PyTuple_GetItem(item, part));
        if (!whole) {
            PyErr_SetString(PyExc_TypeError, "an item is a tuple of header, body and tag, each of them bytes");
            return false;
        }
    }
    return true;
}

static PyObject *judged_item(const struct state *state, const struct item *item)
{
    PyObject *header = item->vantage ? header_row(state, &item->header, item->vantage->name) : Py_NewRef(Py_None);
    PyObject *refusal = item->refused          ? Py_NewRef(item->refused)
                        : item->refusal.reason ? static_refusal(state, item->refusal)
                                               : Py_NewRef(Py_None);
    PyObject *fields[] = {header, Py_NewRef(item->fresh ? Py_True : Py_False), refusal};
    return row(state->judged_type, 3, fields);
}

static PyObject *gate_admit(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    struct gate *gate = (struct gate *)self;
    const struct state *state = state_of(self);
    uint64_t now_ns;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "admit() takes items and now_ns");
        return NULL;
    }
    if (!not_busy(gate) || as_u64(arguments[1], &now_ns))
        return NULL;
    // A copy, which no resolver can change underneath; checked whole before any counter is spent.
    PyObject *given = PySequence_Tuple(arguments[0]);
    if (!given || !all_sealed(given)) {
        Py_XDECREF(given);
        return NULL;
    }
    size_t size = (size_t)PyTuple_Size(given);
    struct item *items = PyMem_Calloc(size ? size : 1, sizeof *items);
    PyObject *answers = NULL;
    if (!items) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t i = 0; i < size; i++) {
        PyObject *item = PyTuple_GetItem(given, (Py_ssize_t)i);
        items[i].sealed = (struct sealed){span_of(PyTuple_GetItem(item, 0)), span_of(PyTuple_GetItem(item, 1)),
                                          span_of(PyTuple_GetItem(item, 2))};
    }
    Py_ssize_t judged = judge_items(gate, state, items, size, now_ns);
    answers = judged < 0 ? NULL : PyList_New(judged);
    for (Py_ssize_t i = 0; answers && i < judged; i++) {
        PyObject *answer = judged_item(state, &items[i]);
        if (answer)
            PyList_SetItem(answers, i, answer);
        else
            Py_CLEAR(answers);
    }
done:
    free_items(items, size);
    Py_DECREF(given);
    return answers;
}

// ---- Batch: one message, judged

struct batch {
    PyObject_HEAD PyObject *message; // the spans point into it
    struct span nonce;
    size_t count, judged; // items in the message, and how many of them were judged
    size_t vouched;       // the first ones
    struct item *items;
};

static void batch_free(PyObject *self)
{
    struct batch *batch = (struct batch *)self;
    free_items(batch->items, batch->judged);
    Py_CLEAR(batch->message);
    free_object(self);
}

static PyObject *gate_judge(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    struct gate *gate = (struct gate *)self;
    const struct state *state = state_of(self);
    uint64_t now_ns;
    if (count != 3 || !PyBytes_Check(arguments[0]) || !PyBytes_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "judge() takes a message and a nonce, both of them bytes, and now_ns");
        return NULL;
    }
    if (!not_busy(gate) || as_u64(arguments[2], &now_ns))
        return NULL;
    struct span nonce = span_of(arguments[1]);
    struct sealed sealed[MAX_BATCH_ITEMS];
    struct envelope envelope;
    if (!read_envelope(span_of(arguments[0]), &envelope, sealed, MAX_BATCH_ITEMS)) {
        PyErr_SetString(PyExc_ValueError, "these bytes are no Batch");
        return NULL;
    }
    struct batch *batch = (struct batch *)new_object((PyTypeObject *)state->batch_type);
    if (!batch)
        return NULL;
    batch->message = Py_NewRef(arguments[0]);
    batch->nonce = envelope.nonce;
    batch->count = envelope.count;
    // Outside the protocol: nothing of it may be judged, or it would spend counters.
    bool as_agreed = envelope.count <= MAX_BATCH_ITEMS && envelope.nonce.size == NONCE_BYTES &&
                     (!nonce.size || (nonce.size == NONCE_BYTES && !memcmp(nonce.at, envelope.nonce.at, NONCE_BYTES)));
    size_t size = as_agreed ? envelope.count : 0;
    batch->items = PyMem_Calloc(size ? size : 1, sizeof *batch->items);
    if (!batch->items) {
        Py_DECREF((PyObject *)batch);
        return PyErr_NoMemory();
    }
    batch->judged = size; // for batch_free
    for (size_t i = 0; i < size; i++)
        batch->items[i] = (struct item){.sealed = sealed[i], .is_leaf = true};
    Py_ssize_t judged = judge_items(gate, state, batch->items, size, now_ns);
    if (judged < 0) {
        Py_DECREF((PyObject *)batch);
        return NULL;
    }
    batch->judged = (size_t)judged;
    batch->vouched = batch->judged - (judged && batch->items[judged - 1].refused);
    return (PyObject *)batch;
}

static struct item *item_at(PyObject *self, PyObject *index)
{
    struct batch *batch = (struct batch *)self;
    size_t at = PyLong_AsSize_t(index);
    if (at == (size_t)-1 && PyErr_Occurred())
        return NULL;
    if (at >= batch->vouched) {
        PyErr_SetString(PyExc_IndexError, "no such item");
        return NULL;
    }
    return &batch->items[at];
}

static PyObject *batch_header(PyObject *self, PyObject *index)
{
    struct item *item = item_at(self, index);
    return item ? header_row(state_of(self), &item->header, item->vantage->name) : NULL;
}

static PyObject *batch_sealed(PyObject *self, PyObject *index)
{
    struct item *item = item_at(self, index);
    return item ? sealed_tuple(&item->sealed) : NULL;
}

static PyObject *batch_body(PyObject *self, PyObject *index)
{
    struct item *item = item_at(self, index);
    return item ? bytes_of(item->sealed.body) : NULL;
}

static bool is_accepted(const struct item *item)
{
    return item->fresh && !item->refusal.reason;
}

static PyObject *batch_reason(PyObject *self, PyObject *index)
{
    struct item *item = item_at(self, index);
    if (!item)
        return NULL;
    return Py_NewRef(item->refusal.reason ? state_of(self)->reasons[item->refusal.reason] : Py_None);
}

static PyObject *batch_duplicate(PyObject *self, PyObject *index)
{
    struct item *item = item_at(self, index);
    return item ? PyBool_FromLong(item->duplicate) : NULL;
}

static PyObject *text_or_empty(struct span text)
{
    return text.size ? PyUnicode_DecodeUTF8((const char *)text.at, (Py_ssize_t)text.size, NULL)
                     : PyUnicode_FromStringAndSize("", 0);
}

static PyObject *batch_figures(PyObject *self, PyObject *index)
{
    const struct state *state = state_of(self);
    struct item *item = item_at(self, index);
    if (!item)
        return NULL;
    if (!is_accepted(item))
        Py_RETURN_NONE;
    const struct figures *figures = &item->figures;
    PyObject *surfaces = PyTuple_New(figures->surface_count);
    for (uint32_t i = 0; surfaces && i < figures->surface_count; i++) {
        const struct surface_figures *one = &figures->surfaces[i];
        PyObject *fields[] = {
            text_or_empty(one->name),   PyLong_FromLong(one->phase),  PyFloat_FromDouble(one->d2),
            PyFloat_FromDouble(one->s), text_or_empty(one->farthest),
        };
        PyObject *made = row(state->surface_type, sizeof fields / sizeof *fields, fields);
        if (made)
            PyTuple_SetItem(surfaces, (Py_ssize_t)i, made);
        else
            Py_CLEAR(surfaces);
    }
    PyObject *fields[] = {
        PyLong_FromUnsignedLongLong(figures->tick_period_ns),
        PyLong_FromUnsignedLongLong(figures->lateness_ns),
        text_or_empty(figures->lead),
        surfaces,
    };
    return row(state->figures_type, sizeof fields / sizeof *fields, fields);
}

// The observations of one body, and how many bytes their names and distributions take.
struct observations {
    size_t count, names_size, laws_size;
    struct observation all[MAX_SURFACES * MAX_VANTAGES_PER_SURFACE];
};

static bool keep_observation(void *context, const struct observation *one)
{
    struct observations *kept = context;
    if (kept->count == sizeof kept->all / sizeof *kept->all)
        return false; // more than the gate lets pass
    kept->names_size += one->vantage.size + (kept->count > 0);
    kept->laws_size += one->distribution.size;
    kept->all[kept->count++] = *one;
    return true;
}

static uint8_t *put(uint8_t *at, struct span span)
{
    if (span.size) // an empty one may be nowhere
        memcpy(at, span.at, span.size);
    return at + span.size;
}

static PyObject *batch_observations(PyObject *self, PyObject *index)
{
    struct item *item = item_at(self, index);
    if (!item)
        return NULL;
    struct observations kept;
    kept.count = kept.names_size = kept.laws_size = 0;
    if (is_accepted(item))
        each_observation(item->sealed.body, keep_observation, &kept);
    PyObject *names = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)kept.names_size);
    PyObject *rows = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(kept.count * OBSERVATION_FIGURES * sizeof(double)));
    PyObject *laws = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)kept.laws_size);
    PyObject *found = names && rows && laws ? PyTuple_Pack(3, names, rows, laws) : NULL;
    if (found) {
        uint8_t *name_at = (uint8_t *)PyBytes_AsString(names);
        uint8_t *row_at = (uint8_t *)PyBytes_AsString(rows);
        uint8_t *law_at = (uint8_t *)PyBytes_AsString(laws);
        for (size_t i = 0; i < kept.count; i++) {
            const struct observation *one = &kept.all[i];
            const double figures[OBSERVATION_FIGURES] = {
                one->own_distance,      one->events,
                one->checked,           one->violated,
                (double)one->unchanged, (double)(one->distribution.size / sizeof(float)),
            };
            if (i) // a name holds no line end: the gate has looked
                *name_at++ = '\n';
            name_at = put(name_at, one->vantage);
            row_at = put(row_at, (struct span){(const uint8_t *)figures, sizeof figures});
            law_at = put(law_at, one->distribution);
        }
    }
    Py_XDECREF(names);
    Py_XDECREF(rows);
    Py_XDECREF(laws);
    return found;
}

static PyObject *batch_settle(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "settle() takes an index and a reason or None");
        return NULL;
    }
    struct item *item = item_at(self, arguments[0]);
    long reason = !item || arguments[1] == Py_None ? 0 : PyLong_AsLong(arguments[1]);
    if (!item || (reason == -1 && PyErr_Occurred()))
        return NULL;
    if (!item->repeat || reason < 0 || reason > REASON_OTHER || (reason && !state_of(self)->reasons[reason])) {
        PyErr_SetString(PyExc_ValueError, "only a repeat is settled, and with a reason that exists");
        return NULL;
    }
    item->duplicate = reason == 0;
    item->refusal = (struct refusal){(enum reason)reason, ""};
    Py_RETURN_NONE;
}

// Indexes of the items for which `has` is true.
static PyObject *indexes(struct batch *batch, bool (*has)(const struct item *))
{
    PyObject *found = PyList_New(0);
    for (size_t i = 0; found && i < batch->vouched; i++) {
        if (!has(&batch->items[i]))
            continue;
        PyObject *index = PyLong_FromSize_t(i);
        if (!index || PyList_Append(found, index))
            Py_CLEAR(found);
        Py_XDECREF(index);
    }
    return found;
}

static bool is_repeat(const struct item *item)
{
    return item->repeat;
}

static bool has_extensions(const struct item *item)
{
    return is_accepted(item) && item->figures.extensions;
}

static bool has_baselines(const struct item *item)
{
    return is_accepted(item) && item->figures.baselines;
}

static bool is_live_and_accepted(const struct item *item)
{
    return is_accepted(item) && item->header.lane == LANE_LIVE;
}

static PyObject *batch_repeats(PyObject *self, void *unused)
{
    (void)unused;
    return indexes((struct batch *)self, is_repeat);
}

static PyObject *batch_with_baselines(PyObject *self, void *unused)
{
    (void)unused;
    return indexes((struct batch *)self, has_baselines);
}

static PyObject *batch_with_extensions(PyObject *self, void *unused)
{
    (void)unused;
    return indexes((struct batch *)self, has_extensions);
}

static PyObject *batch_accepted(PyObject *self, void *unused)
{
    (void)unused;
    return indexes((struct batch *)self, is_accepted);
}

static PyObject *batch_accepted_live(PyObject *self, void *unused)
{
    (void)unused;
    return indexes((struct batch *)self, is_live_and_accepted);
}

static PyObject *batch_nonce(PyObject *self, void *unused)
{
    (void)unused;
    return bytes_of(((struct batch *)self)->nonce);
}

static PyObject *batch_count(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(((struct batch *)self)->count);
}

static Py_ssize_t batch_length(PyObject *self)
{
    return (Py_ssize_t)((struct batch *)self)->vouched;
}

static PyObject *batch_refused(PyObject *self, void *unused)
{
    (void)unused;
    struct batch *batch = (struct batch *)self;
    return Py_NewRef(batch->judged > batch->vouched ? batch->items[batch->vouched].refused : Py_None);
}

// ---- what the store and the fleet's state take from a batch

// A snapshot in the store's rows; mvps.broker.store reads them. All little-endian.
struct entry {
    uint64_t counter, tick;
    uint32_t leaf_bytes; // 0: it was not accepted
    uint8_t reason, unused[3];
};

_Static_assert(sizeof(struct entry) == 24, "the layout that mvps.broker.store reads");

// Items of one (vantage, epoch, lane).
struct run {
    const struct item *first; // of the message
    size_t items, fresh, accepted, refused_fresh;
    uint64_t last;      // counter, of the fresh ones
    uint64_t highest;   // counter, of all
    size_t leaf, bytes; // place of its leaves among those of the batch
    size_t offset;
    const struct item *newest, *oldest; // accepted ones
    uint64_t missed;
    double d2;
    uint64_t sealed_ns; // latest sealing time of the accepted ones
};

static bool same_run(const struct item *a, const struct item *b)
{
    return a->vantage == b->vantage && a->header.lane == b->header.lane && a->header.epoch_id == b->header.epoch_id;
}

static size_t leaf_bytes(const struct item *item)
{
    return item->sealed.header.size + item->sealed.body.size + item->sealed.tag.size;
}

static void count_into(struct run *run, const struct item *item)
{
    run->items++;
    if (item->header.counter > run->highest)
        run->highest = item->header.counter;
    if (!item->fresh)
        return;
    run->fresh++;
    run->last = item->header.counter;
    if (item->refusal.reason) {
        run->refused_fresh++;
        return;
    }
    run->accepted++;
    run->bytes += leaf_bytes(item);
    if (item->header.time_ns > run->sealed_ns)
        run->sealed_ns = item->header.time_ns;
    if (!run->oldest)
        run->oldest = item;
    const struct item *before = run->newest;
    if (before && before->figures.tick_period_ns == item->figures.tick_period_ns &&
        item->header.tick > before->header.tick)
        run->missed += item->header.tick - before->header.tick - 1;
    run->newest = item;
    for (uint32_t i = 0; i < item->figures.surface_count; i++) {
        const struct surface_figures *surface = &item->figures.surfaces[i];
        if (surface->phase != PHASE_UNSPECIFIED && surface->d2 > run->d2)
            run->d2 = surface->d2;
    }
}

// Finds the runs of a batch, in the order of their first items; of[i] is the run of item i.
static size_t find_runs(const struct batch *batch, struct run *runs, uint16_t *of)
{
    size_t count = 0, at = 0;
    for (size_t i = 0; i < batch->vouched; i++) {
        const struct item *item = &batch->items[i];
        if (!count || !same_run(runs[at].first, item))
            for (at = 0; at < count && !same_run(runs[at].first, item);)
                at++;
        if (at == count)
            runs[count++] = (struct run){.first = item, .d2 = -1.0};
        of[i] = (uint16_t)at;
        count_into(&runs[at], item);
    }
    for (size_t i = 1; i < count; i++) {
        runs[i].leaf = runs[i - 1].leaf + runs[i - 1].accepted;
        runs[i].offset = runs[i - 1].offset + runs[i - 1].bytes;
    }
    return count;
}

static void digest_of(const struct item *item, uint8_t digest[SHA256_DIGEST_LENGTH])
{
    if (item->header.scheme == SCHEME_HMAC_SHA256) {
        memcpy(digest, item->sealed.tag.at, SHA256_DIGEST_LENGTH);
        return;
    }
    SHA256_CTX context;
    SHA256_Init(&context);
    SHA256_Update(&context, item->sealed.header.at, item->sealed.header.size);
    SHA256_Update(&context, item->sealed.body.at, item->sealed.body.size);
    SHA256_Final(digest, &context);
}

static PyObject *entries_of(const struct batch *batch, const struct run *run, size_t number, const uint16_t *of)
{
    size_t size = run->fresh * sizeof(struct entry) + run->refused_fresh * SHA256_DIGEST_LENGTH;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (!bytes)
        return NULL;
    uint8_t *at = (uint8_t *)PyBytes_AsString(bytes), *digests = at + run->fresh * sizeof(struct entry);
    for (size_t i = 0; i < batch->vouched; i++) {
        const struct item *item = &batch->items[i];
        if (of[i] != number || !item->fresh)
            continue;
        struct entry entry = {item->header.counter, item->header.tick, 0, (uint8_t)item->refusal.reason, {0}};
        if (item->refusal.reason) {
            digest_of(item, digests);
            digests += SHA256_DIGEST_LENGTH;
        } else {
            entry.leaf_bytes = (uint32_t)leaf_bytes(item);
        }
        memcpy(at, &entry, sizeof entry);
        at += sizeof entry;
    }
    return bytes;
}

// Reasons of those that are refused and no repeats.
static PyObject *refusals_of(const struct state *state, const struct batch *batch, const struct run *run, size_t number,
                             const uint16_t *of)
{
    PyObject *reasons = PyList_New(0);
    if (run->accepted == run->items)
        return reasons;
    for (size_t i = 0; reasons && i < batch->vouched; i++) {
        const struct item *item = &batch->items[i];
        if (of[i] == number && !item->repeat && item->refusal.reason &&
            PyList_Append(reasons, state->reasons[item->refusal.reason]))
            Py_CLEAR(reasons);
    }
    return reasons;
}

static PyObject *run_row(const struct state *state, const struct batch *batch, const struct run *run, size_t number,
                         const uint16_t *of)
{
    const struct item *oldest = run->oldest ? run->oldest : run->first;
    const struct item *newest = run->newest ? run->newest : run->first;
    PyObject *fields[] = {
        Py_NewRef(run->first->vantage->name),
        PyLong_FromUnsignedLongLong(run->first->header.epoch_id),
        PyLong_FromLong(run->first->header.lane),
        PyLong_FromSize_t(run->items),
        PyLong_FromSize_t(run->accepted),
        refusals_of(state, batch, run, number, of),
        PyLong_FromUnsignedLongLong(run->highest),
        PyLong_FromUnsignedLongLong(run->last),
        entries_of(batch, run, number, of),
        PyLong_FromSize_t(run->leaf),
        PyLong_FromSize_t(run->offset),
        run->newest ? PyLong_FromSsize_t(run->newest - batch->items) : PyLong_FromLong(-1),
        PyLong_FromUnsignedLongLong(oldest->header.tick),
        PyLong_FromUnsignedLongLong(run->oldest ? oldest->figures.tick_period_ns : 0),
        PyLong_FromUnsignedLongLong(newest->header.tick),
        PyLong_FromUnsignedLongLong(run->newest ? newest->figures.tick_period_ns : 0),
        PyLong_FromUnsignedLongLong(run->missed),
        PyFloat_FromDouble(run->d2),
        PyLong_FromUnsignedLongLong(run->sealed_ns),
    };
    return row(state->run_type, sizeof fields / sizeof *fields, fields);
}

static PyObject *batch_runs(PyObject *self, PyObject *unused)
{
    (void)unused;
    const struct batch *batch = (struct batch *)self;
    const struct state *state = state_of(self);
    uint16_t of[MAX_BATCH_ITEMS];
    struct run *runs = PyMem_Malloc((batch->vouched ? batch->vouched : 1) * sizeof *runs);
    if (!runs)
        return PyErr_NoMemory();
    size_t count = find_runs(batch, runs, of);
    PyObject *rows = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; rows && i < count; i++) {
        PyObject *made = run_row(state, batch, &runs[i], i, of);
        if (made)
            PyList_SetItem(rows, (Py_ssize_t)i, made);
        else
            Py_CLEAR(rows);
    }
    PyMem_Free(runs);
    return rows;
}

// (leaves, hashes): of the accepted items, run by run, nothing between them.
static PyObject *batch_leaves(PyObject *self, PyObject *unused)
{
    (void)unused;
    const struct batch *batch = (struct batch *)self;
    uint16_t of[MAX_BATCH_ITEMS];
    struct run *runs = PyMem_Malloc((batch->vouched ? batch->vouched : 1) * sizeof *runs);
    if (!runs)
        return PyErr_NoMemory();
    size_t count = find_runs(batch, runs, of), leaves = 0, bytes = 0;
    if (count) {
        leaves = runs[count - 1].leaf + runs[count - 1].accepted;
        bytes = runs[count - 1].offset + runs[count - 1].bytes;
    }
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes);
    PyObject *hashes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(leaves * HASH_BYTES)), *both = NULL;
    if (data && hashes) {
        uint8_t *data_at = (uint8_t *)PyBytes_AsString(data), *hashes_at = (uint8_t *)PyBytes_AsString(hashes);
        for (size_t i = 0; i < batch->vouched; i++) {
            const struct item *item = &batch->items[i];
            struct run *run = &runs[of[i]];
            if (!is_accepted(item))
                continue;
            uint8_t *end = put(data_at + run->offset, item->sealed.header);
            end = put(put(end, item->sealed.body), item->sealed.tag);
            run->offset = (size_t)(end - data_at);
            memcpy(hashes_at + run->leaf++ * HASH_BYTES, item->leaf, HASH_BYTES);
        }
        both = PyTuple_Pack(2, data, hashes);
    }
    Py_XDECREF(data);
    Py_XDECREF(hashes);
    PyMem_Free(runs);
    return both;
}

// ---- acknowledgements: bodies of SealedAcks, one for each vantage and epoch

enum { ACK_ACCEPTED = 1, ACK_DUPLICATE = 2, ACK_REJECTED = 3 };
#define ACK_BYTES      (2 + 9 + 2 + SHA256_DIGEST_LENGTH + 2) // lane, counter, digest, status
#define ACK_MOST_BYTES (2 + ACK_BYTES + 2)                    // with its own tag and length, and a reason

static uint8_t *put_ack(uint8_t *at, const struct item *item)
{
    bool accepted = is_accepted(item);
    uint8_t reason = accepted || item->duplicate ? 0 : (uint8_t)item->refusal.reason;
    *at++ = 2 << 3 | 2;
    *at++ = ACK_BYTES + (reason ? 2 : 0);
    *at++ = 1 << 3 | 0;
    *at++ = item->header.lane;
    *at++ = 2 << 3 | 1;
    memcpy(at, &item->header.counter, 8);
    at += 8;
    *at++ = 3 << 3 | 2;
    *at++ = SHA256_DIGEST_LENGTH;
    digest_of(item, at);
    at += SHA256_DIGEST_LENGTH;
    *at++ = 4 << 3 | 0;
    *at++ = accepted ? ACK_ACCEPTED : item->duplicate ? ACK_DUPLICATE : ACK_REJECTED;
    if (reason) {
        *at++ = 5 << 3 | 0;
        *at++ = reason;
    }
    return at;
}

_Static_assert(REASON_OTHER < 0x80, "a reason is a varint of one byte");

static bool same_key(const struct item *a, const struct item *b)
{
    return a->vantage == b->vantage && a->header.epoch_id == b->header.epoch_id;
}

static PyObject *acks_of(const struct batch *batch, size_t from, bool *answered)
{
    uint8_t buffer[2 + NONCE_BYTES + MAX_BATCH_ITEMS * ACK_MOST_BYTES], *at = buffer;
    const struct item *first = &batch->items[from];
    *at++ = 1 << 3 | 2;
    *at++ = NONCE_BYTES;
    at = put(at, batch->nonce);
    for (size_t i = from; i < batch->vouched; i++) {
        const struct item *item = &batch->items[i];
        if (answered[i] || !same_key(first, item))
            continue;
        answered[i] = true;
        at = put_ack(at, item);
    }
    PyObject *epoch_id = PyLong_FromUnsignedLongLong(first->header.epoch_id);
    PyObject *body = PyBytes_FromStringAndSize((const char *)buffer, at - buffer);
    PyObject *made = epoch_id && body ? PyTuple_Pack(3, first->vantage->name, epoch_id, body) : NULL;
    Py_XDECREF(epoch_id);
    Py_XDECREF(body);
    return made;
}

static PyObject *batch_acks(PyObject *self, PyObject *unused)
{
    (void)unused;
    const struct batch *batch = (struct batch *)self;
    bool answered[MAX_BATCH_ITEMS] = {false};
    PyObject *bodies = PyList_New(0);
    for (size_t i = 0; bodies && i < batch->vouched; i++) {
        if (answered[i])
            continue;
        PyObject *made = acks_of(batch, i, answered);
        if (!made || PyList_Append(bodies, made))
            Py_CLEAR(bodies);
        Py_XDECREF(made);
    }
    return bodies;
}

static PyMethodDef batch_methods[] = {
    {"header", batch_header, METH_O, NULL},
    {"sealed", batch_sealed, METH_O, NULL},
    {"body", batch_body, METH_O, NULL},
    {"reason", batch_reason, METH_O, NULL},
    {"duplicate", batch_duplicate, METH_O, NULL},
    {"figures", batch_figures, METH_O, NULL},
    {"observations", batch_observations, METH_O, NULL},
    {"settle", (PyCFunction)(void (*)(void))batch_settle, METH_FASTCALL, NULL},
    {"runs", batch_runs, METH_NOARGS, NULL},
    {"leaves", batch_leaves, METH_NOARGS, NULL},
    {"acks", batch_acks, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef batch_fields[] = {
    {"nonce", batch_nonce, NULL, NULL, NULL},
    {"count", batch_count, NULL, NULL, NULL},
    {"refused", batch_refused, NULL, NULL, NULL},
    {"repeats", batch_repeats, NULL, NULL, NULL},
    {"accepted", batch_accepted, NULL, NULL, NULL},
    {"accepted_live", batch_accepted_live, NULL, NULL, NULL},
    {"with_baselines", batch_with_baselines, NULL, NULL, NULL},
    {"with_extensions", batch_with_extensions, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot batch_slots[] = {
    {Py_tp_dealloc, batch_free},
    {Py_tp_methods, batch_methods},
    {Py_tp_getset, batch_fields},
    {Py_sq_length, batch_length},
    {0, NULL},
};

static PyType_Spec batch_spec = {
    "mvps.trust._gate.Batch",
    sizeof(struct batch),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    batch_slots,
};

static PyObject *gate_commit(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    struct gate *gate = (struct gate *)self;
    uint64_t epoch_id, lane_number, counter;
    if (count != 4 || !PyUnicode_Check(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "commit() takes vantage_id, epoch_id, lane and counter");
        return NULL;
    }
    if (!not_busy(gate) || as_u64(arguments[1], &epoch_id) || as_u64(arguments[2], &lane_number) ||
        as_u64(arguments[3], &counter))
        return NULL;
    if (lane_number != LANE_LIVE && lane_number != LANE_BACKFILL) {
        PyErr_Format(PyExc_ValueError, "lane %llu is not defined", (unsigned long long)lane_number);
        return NULL;
    }
    PyObject *id = PyUnicode_AsUTF8String(arguments[0]);
    if (!id)
        return NULL;
    struct vantage *vantage = find_vantage(gate, id);
    if (!vantage && !PyErr_Occurred())
        vantage = add_vantage(gate, state_of(self), id, arguments[0]);
    Py_DECREF(id);
    struct epoch *epoch = vantage ? find_epoch(vantage, epoch_id) : NULL;
    if (vantage && !epoch)
        epoch = add_epoch(vantage, epoch_id);
    if (!epoch)
        return NULL;
    struct lane *lane = &epoch->lanes[lane_number - LANE_LIVE];
    if (!lane->was_committed || counter > lane->committed) {
        lane->was_committed = true;
        lane->committed = counter;
    }
    if (!lane->heard || lane->committed > lane->highest) {
        lane->heard = true;
        lane->highest = lane->committed;
    }
    Py_RETURN_NONE;
}

static PyObject *for_each_epoch(struct gate *gate, void (*change)(struct epoch *))
{
    if (!not_busy(gate))
        return NULL;
    PyObject *vantage;
    Py_ssize_t position = 0;
    gate->busy = true; // a key's finaliser may be Python code
    while (PyDict_Next(gate->vantages, &position, NULL, &vantage)) {
        struct vantage *one = (struct vantage *)vantage;
        for (size_t i = 0; i < one->count; i++)
            change(&one->epochs[i]);
    }
    gate->busy = false;
    Py_RETURN_NONE;
}

static void rewind_epoch(struct epoch *epoch)
{
    for (size_t i = 0; i < 2; i++) {
        epoch->lanes[i].heard = epoch->lanes[i].was_committed;
        epoch->lanes[i].highest = epoch->lanes[i].committed;
    }
}

static PyObject *gate_take_backfill_from(PyObject *self, PyObject *sealed_ns)
{
    struct gate *gate = (struct gate *)self;
    if (!not_busy(gate) || as_u64(sealed_ns, &gate->backfill_from_ns))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *gate_rewind(PyObject *self, PyObject *unused)
{
    (void)unused;
    return for_each_epoch((struct gate *)self, rewind_epoch);
}

static PyObject *gate_forget_keys(PyObject *self, PyObject *unused)
{
    (void)unused;
    return for_each_epoch((struct gate *)self, drop_key);
}

static PyMethodDef gate_methods[] = {
    {"admit", (PyCFunction)(void (*)(void))gate_admit, METH_FASTCALL, NULL},
    {"judge", (PyCFunction)(void (*)(void))gate_judge, METH_FASTCALL, NULL},
    {"commit", (PyCFunction)(void (*)(void))gate_commit, METH_FASTCALL, NULL},
    {"take_backfill_from", gate_take_backfill_from, METH_O, NULL},
    {"rewind", gate_rewind, METH_NOARGS, NULL},
    {"forget_keys", gate_forget_keys, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot gate_slots[] = {
    {Py_tp_new, gate_new},     {Py_tp_dealloc, gate_free},    {Py_tp_traverse, gate_traverse},
    {Py_tp_clear, gate_clear}, {Py_tp_methods, gate_methods}, {0, NULL},
};

static PyType_Spec gate_spec = {
    "mvps.trust._gate.Gate",
    sizeof(struct gate),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    gate_slots,
};

// ---- module

static PyObject *module_parse_header(PyObject *module, PyObject *bytes)
{
    const struct state *state = PyModule_GetState(module);
    struct header header;
    if (!PyBytes_Check(bytes)) {
        PyErr_SetString(PyExc_TypeError, "a header is bytes");
        return NULL;
    }
    struct refusal refusal = parse_header(span_of(bytes), &header);
    if (refusal.reason)
        return static_refusal(state, refusal);
    PyObject *name = name_of(header.vantage_id);
    PyObject *made = name ? header_row(state, &header, name) : NULL;
    Py_XDECREF(name);
    return made;
}

static PyObject *module_check_body(PyObject *module, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"body", "vantage_id", "tick", "time_ns", "past_ns", "future_ns", NULL};
    PyObject *body, *tick, *time_ns, *past_ns, *future_ns;
    const char *vantage_id;
    Py_ssize_t size;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "Ss#OOOO", names, &body, &vantage_id, &size, &tick, &time_ns,
                                     &past_ns, &future_ns))
        return NULL;
    struct claims claims = {.vantage_id = {(const uint8_t *)vantage_id, (size_t)size}};
    if (as_u64(tick, &claims.tick) || as_u64(time_ns, &claims.time_ns) || as_u64(past_ns, &claims.past_ns) ||
        as_u64(future_ns, &claims.future_ns))
        return NULL;
    const struct state *state = PyModule_GetState(module);
    struct refusal refusal;
    struct figures figures;
    if (check_snapshot(span_of(body), &claims, is_printable_text, (void *)state, &refusal, &figures))
        return NULL;
    if (refusal.reason)
        return static_refusal(state, refusal);
    Py_RETURN_NONE;
}

static PyObject *module_merkle_append(PyObject *module, PyObject *arguments)
{
    (void)module;
    struct tree tree = {0};
    PyObject *peaks, *hashes, *size;
    if (!PyArg_ParseTuple(arguments, "OSS", &size, &peaks, &hashes) || as_u64(size, &tree.size))
        return NULL;
    uint64_t leaves = (uint64_t)PyBytes_Size(hashes) / HASH_BYTES;
    tree.count = (size_t)__builtin_popcountll(tree.size);
    if (PyBytes_Size(hashes) % HASH_BYTES || (size_t)PyBytes_Size(peaks) != tree.count * HASH_BYTES ||
        tree.size >> 62) {
        PyErr_SetString(PyExc_ValueError, "hashes of 32 bytes each are needed, and as many peaks as the size has");
        return NULL;
    }
    if (tree.count)
        memcpy(tree.peaks, PyBytes_AsString(peaks), tree.count * HASH_BYTES);
    PyObject *nodes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(merkle_new_nodes(tree.size, leaves) * HASH_BYTES));
    if (!nodes)
        return NULL;
    const uint8_t *from = span_of(hashes).at;
    uint8_t *to = (uint8_t *)PyBytes_AsString(nodes);
    Py_BEGIN_ALLOW_THREADS;
    merkle_append(&tree, from, leaves, to);
    Py_END_ALLOW_THREADS;
    PyObject *grown = PyBytes_FromStringAndSize((const char *)tree.peaks, (Py_ssize_t)(tree.count * HASH_BYTES));
    PyObject *both = grown ? PyTuple_Pack(2, nodes, grown) : NULL;
    Py_DECREF(nodes);
    Py_XDECREF(grown);
    return both;
}

static PyMethodDef module_methods[] = {
    {"parse_header", module_parse_header, METH_O, NULL},
    {"check_body", (PyCFunction)(void (*)(void))module_check_body, METH_VARARGS | METH_KEYWORDS, NULL},
    {"merkle_append", module_merkle_append, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

// A type that Python sees too.
static int add_type(PyObject *module, PyType_Spec *spec, PyObject **kept)
{
    *kept = PyType_FromModuleAndSpec(module, spec, NULL);
    if (!*kept)
        return -1;
    return PyModule_AddType(module, (PyTypeObject *)*kept);
}

static int add_named_tuple(PyObject *module, PyObject *collections, const char *name, const char *fields,
                           PyObject **kept)
{
    *kept = PyObject_CallMethod(collections, "namedtuple", "ss", name, fields);
    if (!*kept)
        return -1;
    PyObject *home = PyUnicode_FromString("mvps.trust._gate");
    int failed = home ? PyObject_SetAttrString(*kept, "__module__", home) : -1;
    Py_XDECREF(home);
    return failed ? -1 : PyModule_AddObjectRef(module, name, *kept);
}

static int add_reasons(struct state *state)
{
    PyObject *module = PyImport_ImportModule("mvps.trust.reasons");
    PyObject *members = module ? PyObject_GetAttrString(module, "RejectReason") : NULL;
    PyObject *each = members ? PyObject_GetIter(members) : NULL, *member;
    while (each && (member = PyIter_Next(each))) {
        long number = PyLong_AsLong(member);
        if (number > 0 && number <= REASON_OTHER)
            state->reasons[number] = member;
        else
            Py_DECREF(member);
    }
    Py_XDECREF(each);
    Py_XDECREF(members);
    Py_XDECREF(module);
    if (PyErr_Occurred())
        return -1;
    for (size_t i = 0; i < sizeof KNOWN_REASONS / sizeof *KNOWN_REASONS; i++) {
        if (!state->reasons[KNOWN_REASONS[i]]) {
            PyErr_SetString(PyExc_ImportError, "mvps.trust._gate was built for other reasons: build it again");
            return -1;
        }
    }
    return 0;
}

static int add_names(struct state *state)
{
    state->key_id = PyUnicode_InternFromString("key_id");
    state->scheme = PyUnicode_InternFromString("scheme");
    state->holds = PyUnicode_InternFromString("holds");
    state->isprintable = PyUnicode_InternFromString("isprintable");
    return state->key_id && state->scheme && state->holds && state->isprintable ? 0 : -1;
}

static int module_exec(PyObject *module)
{
    struct state *state = PyModule_GetState(module);
    PyObject *collections = PyImport_ImportModule("collections"), *gate_type = NULL;
    state->vantage_type = PyType_FromModuleAndSpec(module, &vantage_spec, NULL);
    int failed =
        !state->vantage_type || !collections || add_reasons(state) || add_names(state) ||
        add_type(module, &hmac_spec, &state->hmac_type) || add_type(module, &gate_spec, &gate_type) ||
        add_type(module, &batch_spec, &state->batch_type) ||
        add_named_tuple(module, collections, "SealHeader",
                        "scheme purpose lane body_bytes epoch_id counter tick time_ns key_id vantage_id",
                        &state->header_type) ||
        add_named_tuple(module, collections, "Refusal", "reason detail", &state->refusal_type) ||
        add_named_tuple(module, collections, "Judged", "header fresh refusal", &state->judged_type) ||
        add_named_tuple(module, collections, "Run",
                        "vantage_id epoch_id lane items accepted refusals highest last entries leaf offset "
                        "newest first_tick first_period_ns tick period_ns missed d2 sealed_ns",
                        &state->run_type) ||
        add_named_tuple(module, collections, "SurfaceFigures", "name phase d2 s farthest", &state->surface_type) ||
        add_named_tuple(module, collections, "Figures", "tick_period_ns lateness_ns lead surfaces",
                        &state->figures_type) ||
        PyModule_AddIntConstant(module, "SCHEMA_VERSION", SCHEMA_VERSION) ||
        PyModule_AddIntConstant(module, "FIXED_HEADER_BYTES", FIXED_HEADER_BYTES);
    Py_XDECREF(gate_type);
    Py_XDECREF(collections);
    return failed ? -1 : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct state *state = PyModule_GetState(module);
    Py_VISIT(state->header_type);
    Py_VISIT(state->refusal_type);
    Py_VISIT(state->judged_type);
    Py_VISIT(state->batch_type);
    Py_VISIT(state->run_type);
    Py_VISIT(state->figures_type);
    Py_VISIT(state->surface_type);
    Py_VISIT(state->hmac_type);
    Py_VISIT(state->vantage_type);
    for (size_t i = 0; i <= REASON_OTHER; i++)
        Py_VISIT(state->reasons[i]);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct state *state = PyModule_GetState(module);
    Py_CLEAR(state->header_type);
    Py_CLEAR(state->refusal_type);
    Py_CLEAR(state->judged_type);
    Py_CLEAR(state->batch_type);
    Py_CLEAR(state->run_type);
    Py_CLEAR(state->figures_type);
    Py_CLEAR(state->surface_type);
    Py_CLEAR(state->hmac_type);
    Py_CLEAR(state->vantage_type);
    for (size_t i = 0; i <= REASON_OTHER; i++)
        Py_CLEAR(state->reasons[i]);
    Py_CLEAR(state->key_id);
    Py_CLEAR(state->scheme);
    Py_CLEAR(state->holds);
    Py_CLEAR(state->isprintable);
    return 0;
}

static void module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "mvps.trust._gate",
    .m_size = sizeof(struct state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__gate(void);

PyMODINIT_FUNC PyInit__gate(void)
{
    return PyModuleDef_Init(&definition);
}
