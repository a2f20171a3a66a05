// SPDX-License-Identifier: Apache-2.0
//
// The Python module mvps.trust._gate; what it does is described in mvps/trust/_gate.pyi.
//
// Python sees these objects and no pointer of ours: HmacKey (a key), Gate (who was heard, with what counters). A batch
// is judged under the interpreter's lock and in one call; the one place where Python code runs in between is the
// resolver of an unknown key, and a gate refuses to be used again from inside it.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

#include "header.h"
#include "hmac.h"
#include "snapshot.h"

#define TAG_OF_SCHEME(scheme) ((scheme) == SCHEME_HMAC_SHA256 ? TAG_BYTES : SIGNATURE_BYTES)

_Static_assert(TAG_BYTES == SHA256_DIGEST_LENGTH, "the tag of scheme 1 is a whole SHA-256 digest");

struct state {
    PyObject *header_type, *refusal_type, *judged_type, *hmac_type, *vantage_type;
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
    Py_ssize_t max_vantages;
    bool busy;
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

static PyObject *header_row(const struct state *state, const struct header *header, PyObject *key_id, PyObject *name)
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
        Py_NewRef(key_id),
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

// Takes the references to `header` (None: nothing vouches for it) and `refusal`.
static PyObject *judged_row(const struct state *state, PyObject *header, bool fresh, PyObject *refusal)
{
    PyObject *fields[] = {header, Py_NewRef(fresh ? Py_True : Py_False), refusal};
    return row(state->judged_type, 3, fields);
}

static PyObject *not_vouched(const struct state *state, PyObject *refusal)
{
    return judged_row(state, Py_NewRef(Py_None), false, refusal);
}

static PyObject *not_vouched_as(const struct state *state, enum reason reason, const char *detail)
{
    return not_vouched(state, static_refusal(state, (struct refusal){reason, detail}));
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
    if (!PyTuple_Check(answer) || PyTuple_Size(answer) != 4) {
        PyErr_SetString(PyExc_TypeError, "a resolver answers a Refusal or (key, from_ns, until_ns, retire_ns)");
        return -1;
    }
    PyObject *key = PyTuple_GetItem(answer, 0), *scheme = NULL;
    if (as_u64(PyTuple_GetItem(answer, 1), &epoch->from_ns) || as_u64(PyTuple_GetItem(answer, 2), &epoch->until_ns) ||
        as_u64(PyTuple_GetItem(answer, 3), &epoch->retire_ns))
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

// 1: the tag is the message's; 0: it is not; -1: an error is set.
static int seal_holds(const struct state *state, const struct epoch *epoch, PyObject *header, PyObject *body,
                      PyObject *tag)
{
    if (epoch->native)
        return hmac_holds(&((struct hmac_object *)epoch->key)->key, span_of(header), span_of(body), span_of(tag));
    PyObject *answer = PyObject_CallMethodObjArgs(epoch->key, state->holds, header, body, tag, NULL);
    int holds = answer ? PyObject_IsTrue(answer) : -1;
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

static PyObject *other_key(const struct state *state, const struct header *header, const struct epoch *epoch,
                           PyObject *name)
{
    char theirs[2 * KEY_ID_BYTES + 1], ours[2 * KEY_ID_BYTES + 1];
    write_hex(header->key_id, theirs);
    write_hex(span_of(epoch->key_id).at, ours);
    PyObject *detail = PyUnicode_FromFormat("sealed for %U with key %s, epoch %llu names %s: enrol the key that is in "
                                            "use, or go back to the one that is enrolled",
                                            name, theirs, (unsigned long long)header->epoch_id, ours);
    return not_vouched(state, refusal_row(state, REASON_UNKNOWN_KEY, detail));
}

// True only if the seal holds. Otherwise *judged is the answer, or NULL after an error.
static bool is_sealed(const struct state *state, const struct header *header, const struct epoch *epoch, PyObject *item,
                      PyObject *name, PyObject **judged)
{
    PyObject *tag = PyTuple_GetItem(item, 2);
    if (header->scheme != epoch->scheme) {
        PyObject *detail =
            PyUnicode_FromFormat("%U seals by scheme %d, epoch %llu has scheme %d: give both sides the "
                                 "same manifest",
                                 name, header->scheme, (unsigned long long)header->epoch_id, epoch->scheme);
        *judged = not_vouched(state, refusal_row(state, REASON_WRONG_SCHEME, detail));
        return false;
    }
    if (PyBytes_Size(tag) != TAG_OF_SCHEME(header->scheme)) {
        *judged = not_vouched_as(state, REASON_BAD_LENGTH, "the tag has not the length of its scheme");
        return false;
    }
    if (memcmp(span_of(epoch->key_id).at, header->key_id, KEY_ID_BYTES) != 0) {
        *judged = other_key(state, header, epoch, name);
        return false;
    }
    int holds = seal_holds(state, epoch, PyTuple_GetItem(item, 0), PyTuple_GetItem(item, 1), tag);
    if (holds == 0) {
        PyObject *detail = PyUnicode_FromFormat("the seal of %U does not hold", name);
        *judged = not_vouched(state, refusal_row(state, REASON_BAD_SEAL, detail));
    }
    return holds == 1;
}

// Why a new counter does not count; reason 0 if it does.
static struct refusal check_time(const struct gate *gate, const struct epoch *epoch, const struct header *header,
                                 uint64_t now_ns)
{
    bool live = header->lane == LANE_LIVE;
    __int128 age = (__int128)now_ns - header->time_ns;
    if (age > (__int128)(live ? gate->live_past_ns : gate->backfill_past_ns))
        return (struct refusal){REASON_STALE, "sealed too long ago"};
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

// Of a header whose seal holds: counter, then time, then body.
static PyObject *judge_vouched(const struct gate *gate, const struct state *state, struct epoch *epoch,
                               const struct header *header, PyObject *body, PyObject *name, uint64_t now_ns)
{
    PyObject *shown = header_row(state, header, epoch->key_id, name);
    if (!shown)
        return NULL;
    struct lane *lane = &epoch->lanes[header->lane - LANE_LIVE];
    // Counter first: a duplicate of an accepted snapshot is a duplicate however old it has become.
    if (lane->heard && header->counter <= lane->highest)
        return judged_row(state, shown, false, Py_NewRef(Py_None));
    struct refusal refusal = check_time(gate, epoch, header, now_ns);
    if (refusal.reason)
        return judged_row(state, shown, false, static_refusal(state, refusal));
    struct claims claims = {header->vantage_id, header->tick, header->time_ns, gate->live_past_ns, gate->future_ns};
    if (check_snapshot(span_of(body), &claims, is_printable_text, (void *)state, &refusal)) {
        Py_DECREF(shown);
        return NULL;
    }
    lane->heard = true;
    lane->highest = header->counter;
    return judged_row(state, shown, true, refusal.reason ? static_refusal(state, refusal) : Py_NewRef(Py_None));
}

// The state of a vantage in an epoch whose seal held for the first time; it takes over the references of `resolved`.
// NULL with *refused set, or after an error.
static struct epoch *keep(struct gate *gate, const struct state *state, struct epoch *resolved, PyObject *id,
                          PyObject *name, PyObject **refused)
{
    struct vantage *vantage = find_vantage(gate, id);
    if (!vantage && !PyErr_Occurred()) {
        if (PyDict_Size(gate->vantages) >= gate->max_vantages) {
            PyObject *detail =
                PyUnicode_FromFormat("this broker keeps %zd vantages: raise max_vantages", gate->max_vantages);
            *refused = not_vouched(state, refusal_row(state, REASON_TOO_MANY_VANTAGES, detail));
            return NULL;
        }
        vantage = add_vantage(gate, state, id, name);
    }
    if (!vantage)
        return NULL;
    struct epoch *epoch = find_epoch(vantage, resolved->id);
    if (!epoch)
        epoch = add_epoch(vantage, resolved->id);
    if (!epoch)
        return NULL;
    memcpy(resolved->lanes, epoch->lanes, sizeof epoch->lanes);
    *epoch = *resolved;
    resolved->key = resolved->key_id = NULL;
    return epoch;
}

// An item whose key the gate does not hold: it is kept once a seal held under it, and not before, since names that
// nobody can seal for must not fill the memory.
static PyObject *judge_unknown(struct gate *gate, const struct state *state, const struct header *header,
                               PyObject *item, PyObject *id, uint64_t now_ns)
{
    struct epoch resolved = {.id = header->epoch_id}, *epoch = NULL;
    PyObject *name = name_of(header->vantage_id);
    PyObject *answer = name ? ask(gate, name, header->epoch_id) : NULL, *judged = NULL;
    if (!answer)
        goto done;
    if (PyObject_TypeCheck(answer, (PyTypeObject *)state->refusal_type)) {
        judged = not_vouched(state, Py_NewRef(answer));
        goto done;
    }
    if (take_key(state, answer, &resolved))
        goto done;
    if (!is_sealed(state, header, &resolved, item, name, &judged))
        goto done;
    epoch = keep(gate, state, &resolved, id, name, &judged);
    if (epoch)
        judged = judge_vouched(gate, state, epoch, header, PyTuple_GetItem(item, 1), name, now_ns);
done:
    drop_key(&resolved);
    Py_XDECREF(answer);
    Py_XDECREF(name);
    return judged;
}

static PyObject *judge(struct gate *gate, const struct state *state, PyObject *item, uint64_t now_ns)
{
    struct header header;
    struct refusal refusal = parse_header(span_of(PyTuple_GetItem(item, 0)), &header);
    if (refusal.reason)
        return not_vouched(state, static_refusal(state, refusal));
    if (header.purpose != PURPOSE_SNAPSHOT)
        return not_vouched_as(state, REASON_WRONG_PURPOSE, "sealed for another purpose than snapshot");
    PyObject *body = PyTuple_GetItem(item, 1);
    if ((size_t)PyBytes_Size(body) != header.body_bytes)
        return not_vouched_as(state, REASON_BAD_LENGTH, "the body has another length than the header says");
    PyObject *id = PyBytes_FromStringAndSize((const char *)header.vantage_id.at, (Py_ssize_t)header.vantage_id.size);
    if (!id)
        return NULL;
    PyObject *judged = NULL;
    struct vantage *vantage = find_vantage(gate, id);
    struct epoch *epoch = vantage ? find_epoch(vantage, header.epoch_id) : NULL;
    if (epoch && epoch->key) {
        if (is_sealed(state, &header, epoch, item, vantage->name, &judged))
            judged = judge_vouched(gate, state, epoch, &header, body, vantage->name, now_ns);
    } else if (!PyErr_Occurred()) {
        judged = judge_unknown(gate, state, &header, item, id, now_ns);
    }
    Py_DECREF(id);
    return judged;
}

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
    PyObject *items = PySequence_Tuple(arguments[0]);
    if (!items || !all_sealed(items)) {
        Py_XDECREF(items);
        return NULL;
    }
    Py_ssize_t size = PyTuple_Size(items);
    PyObject *answers = PyList_New(size);
    Py_ssize_t judged_items = 0;
    bool vouched = true;
    gate->busy = true;
    while (answers && vouched && judged_items < size) {
        PyObject *judged = judge(gate, state, PyTuple_GetItem(items, judged_items), now_ns);
        if (!judged) {
            Py_CLEAR(answers);
            break;
        }
        // What follows a seal that does not hold spends no counter: its sender sends it again, and in order.
        vouched = PyTuple_GetItem(judged, 0) != Py_None;
        PyList_SetItem(answers, judged_items++, judged);
    }
    gate->busy = false;
    Py_DECREF(items);
    if (answers && judged_items < size) {
        PyObject *whole = answers;
        answers = PyList_GetSlice(whole, 0, judged_items);
        Py_DECREF(whole);
    }
    return answers;
}

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
    {"commit", (PyCFunction)(void (*)(void))gate_commit, METH_FASTCALL, NULL},
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
    PyObject *key_id = PyBytes_FromStringAndSize((const char *)header.key_id, KEY_ID_BYTES);
    PyObject *name = name_of(header.vantage_id);
    PyObject *made = key_id && name ? header_row(state, &header, key_id, name) : NULL;
    Py_XDECREF(key_id);
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
    if (check_snapshot(span_of(body), &claims, is_printable_text, (void *)state, &refusal))
        return NULL;
    if (refusal.reason)
        return static_refusal(state, refusal);
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"parse_header", module_parse_header, METH_O, NULL},
    {"check_body", (PyCFunction)(void (*)(void))module_check_body, METH_VARARGS | METH_KEYWORDS, NULL},
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
    int failed = !state->vantage_type || !collections || add_reasons(state) || add_names(state) ||
                 add_type(module, &hmac_spec, &state->hmac_type) || add_type(module, &gate_spec, &gate_type) ||
                 add_named_tuple(module, collections, "SealHeader",
                                 "scheme purpose lane body_bytes epoch_id counter tick time_ns key_id vantage_id",
                                 &state->header_type) ||
                 add_named_tuple(module, collections, "Refusal", "reason detail", &state->refusal_type) ||
                 add_named_tuple(module, collections, "Judged", "header fresh refusal", &state->judged_type) ||
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
