/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

#include "app/spec.h"
#include "base/cleanup.h"
#include "lib/json.h"

#define HEAD "apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
#define POLICY "apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: gold}\n"

static struct app_documents *parse(const char *text)
{
    struct error err = ERROR_INIT;
    struct app_parse_options options = {.file = "f.yaml", .directory = "/dir"};
    struct app_documents *documents = NULL;
    check_ok(app_documents_parse(&options, text, strlen(text), &documents, &err));
    return documents;
}

static void refuse(const char *text, const char *message)
{
    struct error err = ERROR_INIT;
    struct app_parse_options options = {.file = "f.yaml"};
    struct app_documents *documents = NULL;
    check_error(app_documents_parse(&options, text, strlen(text), &documents, &err), -EINVAL, message);
    assert_null(documents);
}

static void whole(void **unused)
{
    (void)unused;
    _cleanup_app_documents_ struct app_documents *d =
        parse(HEAD "spec:\n  policyRef: {name: gold}\n  export: fuse\n  volumes:\n"
                   "  - {name: data, size: 8Gi, mountPath: /srv//shop/./data/, fsType: ext4}\n"
                   "  - {name: wal, size: 512Mi, mountPath: /srv/shop/data/wal, fsType: xfs}\n"
                   "  - {name: raw, size: 16Mi}\n"
                   "  manifests: ./m\n"
                   "  lifecycle: {stop: [systemctl, stop, shop], start: [[./a, b], [c]], probe: 'x && y'}\n");
    const struct app_spec *s = d->items[0].spec;
    assert_int_equal(d->count, 1);
    assert_string_equal(s->name, "shop");
    assert_string_equal(s->policy, "gold");
    assert_int_equal(s->volume_count, 3);
    assert_string_equal(s->volumes[0].mount_path, "/srv/shop/data");
    assert_int_equal(s->volumes[0].size_bytes, 8ull << 30);
    assert_int_equal(s->volumes[1].fs_type, APP_FS_XFS);
    assert_null(s->volumes[2].mount_path);
    assert_string_equal(s->manifests, "/dir/m");
    assert_int_equal(s->stop.count, 1);
    assert_string_equal(s->stop.items[0].argv[2], "shop");
    assert_null(s->stop.items[0].argv[3]);
    assert_int_equal(s->start.count, 2);
    assert_string_equal(s->start.items[0].argv[0], "/dir/a");
    assert_true(s->probe.items[0].shell);
    assert_string_equal(s->probe.items[0].argv[0], "/bin/sh");
    assert_string_equal(s->probe.items[0].argv[2], "x && y");
}

/* What is adopted has a size and a file system of its own. */
static void sources(void **unused)
{
    (void)unused;
    _cleanup_app_documents_ struct app_documents *d =
        parse(HEAD "spec:\n  volumes:\n  - {name: a, source: ./old.img, mountPath: /a}\n"
                   "  - {name: b, source: /dev/sdb1, size: 1Gi, mountPath: /b, fsType: xfs}\n");
    const struct app_volume *v = d->items[0].spec->volumes;
    assert_string_equal(v[0].source, "/dir/old.img");
    assert_int_equal(v[0].size_bytes, 0);
    assert_int_equal(v[0].fs_type, APP_FS_FOUND);
    assert_int_equal(v[1].fs_type, APP_FS_XFS);
    _cleanup_free_ char *text = app_spec_to_yaml(d->items[0].spec);
    assert_non_null(strstr(text, "  - name: a\n    source: /dir/old.img\n    mountPath: /a\n"
                                 "  - name: b\n    source: /dev/sdb1\n    size: 1Gi\n    mountPath: /b\n    fsType: xfs\n"));
    _cleanup_app_documents_ struct app_documents *again = parse(text);
    _cleanup_free_ char *second = app_spec_to_yaml(again->items[0].spec);
    assert_string_equal(text, second);
    refuse(HEAD "spec: {volumes: [{name: a}]}\n", "f.yaml:4:18: spec.volumes[0].size: missing; expected a size such as 8Gi");
    refuse(HEAD "spec: {volumes: [{name: a, source: old.img}]}\n",
           "f.yaml:4:36: spec.volumes[0].source: found 'old.img'; expected an absolute path, because it is not known where a "
           "relative one starts");
}

/* Where a clone's volume came from is kept as it is written. */
static void from(void **unused)
{
    (void)unused;
    _cleanup_app_documents_ struct app_documents *d = parse(HEAD "spec: {volumes: [{name: a, size: 1Gi, from: 'shop/data@lsn:7'}, {name: b, size: 1Gi}]}\n");
    const struct app_volume *v = d->items[0].spec->volumes;
    assert_string_equal(v[0].from, "shop/data@lsn:7");
    assert_true(app_volume_is_adopted(&v[0]));
    assert_false(app_volume_is_adopted(&v[1]));
    _cleanup_free_ char *text = app_spec_to_yaml(d->items[0].spec);
    _cleanup_app_documents_ struct app_documents *again = parse(text);
    assert_string_equal(again->items[0].spec->volumes[0].from, "shop/data@lsn:7");
    assert_null(again->items[0].spec->volumes[1].from);
    refuse(HEAD "spec: {volumes: [{name: a, source: /b, from: 'shop/data@lsn:7'}]}\n",
           "f.yaml:4:46: spec.volumes[0].from: found 'shop/data@lsn:7'; expected what a clone wrote there, without source");
}

static void canonical(void **unused)
{
    (void)unused;
    _cleanup_app_documents_ struct app_documents *d =
        parse(HEAD "spec: {volumes: [{size: 1Gi, name: data, mountPath: /a}], lifecycle: {stop: ['null', "
                   "\"a\\nb\", é], start: \"one\\ntwo\\n\"}}\n");
    _cleanup_free_ char *text = app_spec_to_yaml(d->items[0].spec);
    assert_string_equal(text, "apiVersion: tidemark.io/v1alpha1\n"
                              "kind: ProtectedApplication\n"
                              "metadata:\n  name: shop\n"
                              "spec:\n"
                              "  policyRef:\n    name: default\n"
                              "  export: fuse\n"
                              "  volumes:\n"
                              "  - name: data\n    size: 1Gi\n    mountPath: /a\n    fsType: ext4\n"
                              "  lifecycle:\n"
                              "    stop:\n    - [\"null\", \"a\\x0ab\", \"é\"]\n"
                              "    start: \"one\\x0atwo\\x0a\"\n");
    _cleanup_app_documents_ struct app_documents *again = parse(text);
    _cleanup_free_ char *second = app_spec_to_yaml(again->items[0].spec);
    assert_string_equal(second, text);
    _cleanup_json_ json_t *json = app_spec_to_json(again->items[0].spec);
    assert_int_equal(
        json_integer_value(json_object_get(
            json_array_get(json_object_get(json_object_get(json, "spec"), "volumes"), 0), "sizeBytes")),
        1 << 30);
}

static void checksums(void **unused)
{
    struct error err = ERROR_INIT;
    (void)unused;
    _cleanup_free_ char *text = app_text_with_checksum("a: 1\nb: 2\n");
    size_t length = strlen(text);
    assert_string_equal(strchr(text, '\n') + 1, "a: 1\nb: 2\n");
    check_ok(app_text_check("f", text, length, &err));
    check_ok(app_text_check("f", "a: 1\n", 5, &err)); /* there is none */
    check_error(app_text_check("f", text, length - 5, &err), -EBADMSG, "f is damaged, or was changed by hand");
    for (size_t i = strcspn(text, ":") + 2; i < length; i++) {
        text[i] ^= 1;
        check_error(app_text_check("f", text, length, &err), -EBADMSG, "f is damaged, or was changed by hand");
        text[i] ^= 1;
    }
}

static void policies(void **unused)
{
    (void)unused;
    _cleanup_app_documents_ struct app_documents *d =
        parse(POLICY "spec: {journal: {quota: 1Gi}, ackMode: flush, failureMode: protection}\n---\n" HEAD
                     "spec: {volumes: [{name: a, size: 16Mi}]}\n");
    assert_int_equal(d->count, 2);
    assert_int_equal(d->items[0].policy->quota_bytes, 1ull << 30);
    assert_int_equal(d->items[0].policy->ack_mode, APP_ACK_FLUSH);
    assert_int_equal(d->items[0].policy->failure_mode, APP_FAILURE_PROTECTION);
    assert_string_equal(d->items[1].spec->policy, "default");
    struct app_policy *policy = app_policy_new_default();
    assert_string_equal(policy->name, "default");
    assert_int_equal(policy->ack_mode, APP_ACK_WRITE);
    assert_int_equal(policy->failure_mode, APP_FAILURE_AVAILABILITY);
    app_policy_free(policy);
    refuse(POLICY "spec: {journal: {quota: 1Mi}}\n",
           "f.yaml:4:25: spec.journal.quota: found '1Mi'; expected at least 256.0 MiB");
    refuse(POLICY "spec: {journal: {quota: 1Ki}}\n",
           "f.yaml:4:25: spec.journal.quota: found '1Ki'; expected at least 256.0 MiB");
    refuse(POLICY "spec: {failureMode: never}\n",
           "f.yaml:4:21: spec.failureMode: found 'never'; expected availability or protection");
    refuse(POLICY "spec: {ackMode: never}\n",
           "f.yaml:4:17: spec.ackMode: found 'never'; expected write or flush");
}

static void retention(void **unused)
{
    (void)unused;
    _cleanup_app_documents_ struct app_documents *d =
        parse(POLICY "spec: {journal: {history: 30d, quota: 50Gi, thinning: [{after: 2h, keep: 1s}, {after: 36h, keep: 1m}]}}\n");
    const struct app_policy *p = d->items[0].policy;
    assert_int_equal(p->history_ns, 30 * 86400ull * 1000000000u);
    assert_int_equal(p->thinning_count, 2);
    assert_int_equal(p->thinning[1].after_ns, 36 * 3600ull * 1000000000u);
    assert_int_equal(p->thinning[1].keep_s, 60);
    _cleanup_free_ char *text = app_policy_to_yaml(p);
    assert_non_null(strstr(text, "  journal:\n    history: 30d\n    quota: 50Gi\n    thinning:\n    - after: 2h\n      keep: 1s\n"
                                 "    - after: 36h\n      keep: 1m\n"));
    _cleanup_app_documents_ struct app_documents *again = parse(text);
    _cleanup_free_ char *second = app_policy_to_yaml(again->items[0].policy);
    assert_string_equal(second, text);
    /* The default, and none. */
    _cleanup_app_documents_ struct app_documents *plain = parse(POLICY "spec: {}\n");
    assert_int_equal(plain->items[0].policy->thinning_count, 3);
    assert_int_equal(plain->items[0].policy->thinning[2].keep_s, 3600);
    assert_int_equal(plain->items[0].policy->history_ns, 0);
    _cleanup_app_documents_ struct app_documents *none = parse(POLICY "spec: {journal: {thinning: []}}\n");
    assert_int_equal(none->items[0].policy->thinning_count, 0);
    _cleanup_free_ char *nothing = app_policy_to_yaml(none->items[0].policy);
    assert_non_null(strstr(nothing, "    thinning: []\n"));
    _cleanup_app_documents_ struct app_documents *still = parse(nothing);
    assert_int_equal(still->items[0].policy->thinning_count, 0);
    /* A history that ends before the default steps begin: what is stored of it can be read at the next start. */
    static const struct { const char *history; size_t steps; } short_ones[] = {{"1h", 0}, {"2h", 0}, {"24h", 1}, {"7d", 2}, {"8d", 3}};
    for (size_t i = 0; i < sizeof short_ones / sizeof *short_ones; i++) {
        char document[256];
        snprintf(document, sizeof document, POLICY "spec: {journal: {history: %s}}\n", short_ones[i].history);
        _cleanup_app_documents_ struct app_documents *given = parse(document);
        assert_int_equal(given->items[0].policy->thinning_count, short_ones[i].steps);
        _cleanup_free_ char *stored = app_policy_to_yaml(given->items[0].policy);
        _cleanup_app_documents_ struct app_documents *read = parse(stored);
        assert_int_equal(read->items[0].policy->thinning_count, short_ones[i].steps);
    }
}

static void compression(void **unused)
{
    (void)unused;
    _cleanup_app_documents_ struct app_documents *plain = parse(POLICY "spec: {journal: {quota: 1Gi}}\n");
    assert_int_equal(plain->items[0].policy->compress_after_ns, 600ull * 1000000000u);
    _cleanup_app_documents_ struct app_documents *later = parse(POLICY "spec: {journal: {compressAfter: 2h}}\n");
    assert_int_equal(later->items[0].policy->compress_after_ns, 7200ull * 1000000000u);
    _cleanup_app_documents_ struct app_documents *never = parse(POLICY "spec: {journal: {compressAfter: never}}\n");
    assert_true(never->items[0].policy->compress_after_ns == APP_COMPRESS_NEVER);
    for (int i = 0; i < 3; i++) {
        const struct app_policy *p = (i == 0 ? plain : i == 1 ? later : never)->items[0].policy;
        _cleanup_free_ char *text = app_policy_to_yaml(p);
        assert_non_null(strstr(text, i == 0 ? "    compressAfter: 10m\n" : i == 1 ? "    compressAfter: 2h\n" : "    compressAfter: never\n"));
        _cleanup_app_documents_ struct app_documents *again = parse(text);
        assert_true(again->items[0].policy->compress_after_ns == p->compress_after_ns);
    }
    refuse(POLICY "spec: {journal: {compressAfter: soon}}\n",
           "f.yaml:4:33: spec.journal.compressAfter: found 'soon'; expected a duration such as 10m, or never");
    refuse(POLICY "spec: {journal: {compressAfter: 1s}}\n", "f.yaml:4:33: spec.journal.compressAfter: found '1s'; expected at least 1 min");
}

static void wrong_retention(void **unused)
{
    (void)unused;
    refuse(POLICY "spec: {journal: {history: 30}}\n",
           "f.yaml:4:27: spec.journal.history: found '30'; expected a duration such as 90s, 24h or 30d");
    refuse(POLICY "spec: {journal: {history: 1s}}\n", "f.yaml:4:27: spec.journal.history: found '1s'; expected at least 1 min");
    refuse(POLICY "spec: {journal: {histroy: 1d}}\n",
           "f.yaml:4:18: spec.journal.histroy: unknown field; did you mean 'history'? (expected one of: compressAfter, history, quota, seedRate, thinning)");
    refuse(POLICY "spec: {journal: {thinning: 1h}}\n",
           "f.yaml:4:28: spec.journal.thinning: found '1h'; expected a list of steps such as {after: 24h, keep: 1m}");
    refuse(POLICY "spec: {journal: {thinning: [{after: 2h}]}}\n",
           "f.yaml:4:29: spec.journal.thinning[0].keep: missing; expected a duration such as 1m");
    refuse(POLICY "spec: {journal: {thinning: [{after: 2h, keep: 1500ms}]}}\n",
           "f.yaml:4:47: spec.journal.thinning[0].keep: found '1500ms'; expected whole seconds");
    refuse(POLICY "spec: {journal: {thinning: [{after: 2h, keep: 3h}]}}\n",
           "f.yaml:4:47: spec.journal.thinning[0].keep: found '3h'; expected not more than `after`");
    refuse(POLICY "spec: {journal: {thinning: [{after: 2h, keep: 1s}, {after: 1h, keep: 1m}]}}\n",
           "f.yaml:4:60: spec.journal.thinning[1].after: found '1h'; expected more than in the step before");
    refuse(POLICY "spec: {journal: {thinning: [{after: 2h, keep: 40s}, {after: 3h, keep: 1m}]}}\n",
           "f.yaml:4:71: spec.journal.thinning[1].keep: found '1m'; expected a multiple of `keep` in the step before, and more than it");
    refuse(POLICY "spec: {journal: {history: 2h, thinning: [{after: 2h, keep: 40s}]}}\n",
           "f.yaml:4:27: spec.journal.history: found '2h'; expected more than `after` of the last step of thinning");
}

static void envelope(void **unused)
{
    (void)unused;
    refuse("", "no document found");
    refuse("kind: ProtectionPolicy\n", "f.yaml:1:1: apiVersion: missing; expected tidemark.io/v1alpha1");
    refuse("apiVersion: v1\n", "f.yaml:1:13: apiVersion: found 'v1'; expected tidemark.io/v1alpha1");
    refuse("apiVersion: tidemark.io/v1alpha1\nkind: Pod\n", "f.yaml:2:7: kind: found 'Pod'");
    refuse("apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\n", "metadata: missing");
    refuse("apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: A}\n",
           "f.yaml:3:18: metadata.name: found 'A'; expected a DNS label");
    refuse(HEAD, "spec: missing");
    refuse(HEAD "spce: {}\n", "f.yaml:4:1: spce: unknown field; did you mean 'spec'?");
    refuse(POLICY "---\n" POLICY, "f.yaml:7:18: metadata.name: found ProtectionPolicy gold a second time");
    refuse("[]\n", "found an empty list; expected a mapping");
}

static void volumes(void **unused)
{
    (void)unused;
    refuse(HEAD "spec: {}\n", "f.yaml:4:7: spec.volumes: missing");
    refuse(HEAD "spec: {volumes: []}\n",
           "spec.volumes: found an empty list; expected a list of 1 to 32 volumes");
    char many[2048] = HEAD "spec: {volumes: [";
    for (int i = 0; i < 33; i++)
        snprintf(many + strlen(many), sizeof many - strlen(many), "{name: v%d, size: 1Gi}, ", i);
    snprintf(many + strlen(many), sizeof many - strlen(many), "]}\n");
    refuse(many, "spec.volumes: found 33 volumes; expected at most 32");
    refuse(HEAD "spec:\n  volumes:\n  - {nmae: a}\n",
           "f.yaml:6:6: spec.volumes[0].nmae: unknown field; did you mean 'name'? (expected one of: name, "
           "source, from, size, mountPath, fsType)");
    refuse(HEAD "spec: {volumes: [{name: a_b, size: 1Gi}]}\n",
           "spec.volumes[0].name: found 'a_b'; expected a DNS label");
    refuse(HEAD "spec: {volumes: [{name: a}]}\n",
           "spec.volumes[0].size: missing; expected a size such as 8Gi");
    refuse(HEAD "spec: {volumes: [{name: a, size: lots}]}\n",
           "found 'lots'; expected a size such as 8Gi or 512Mi");
    refuse(HEAD "spec: {volumes: [{name: a, size: 17M}]}\n",
           "found '17M'; expected a multiple of 4096 bytes");
    refuse(HEAD "spec: {volumes: [{name: a, size: 8Mi}]}\n", "found '8Mi'; expected at least 16.0 MiB");
    refuse(HEAD "spec: {volumes: [{name: a, size: 1Pi}]}\n", "expected at most 64.0 TiB");
    refuse(HEAD "spec: {volumes: [{name: a, size: 1Gi}, {name: a, size: 1Gi}]}\n",
           "f.yaml:4:47: spec.volumes[1].name: found 'a'; expected a name that no other volume");
    refuse(HEAD "spec: {volumes: [{name: a, size: 1Gi, mountPath: srv}]}\n",
           "found 'srv'; expected an absolute path");
    refuse(HEAD "spec: {volumes: [{name: a, size: 1Gi, mountPath: /x/..}]}\n",
           "expected a directory other than /");
    refuse(
        HEAD
        "spec: {volumes: [{name: a, size: 1Gi, mountPath: /x}, {name: b, size: 1Gi, mountPath: //x/}]}\n",
        "spec.volumes[1].mountPath: found '//x/'; expected a directory that no other volume is mounted on");
    refuse(HEAD "spec: {volumes: [{name: a, size: 1Gi, mountPath: /x, fsType: zfs}]}\n",
           "found 'zfs'; expected ext4, xfs or btrfs");
    refuse(HEAD "spec: {volumes: [{name: a, size: 1Gi, fsType: xfs}]}\n", "expected mountPath beside it");
    refuse(HEAD "spec: {volumes: [{name: a, size: 64Mi, mountPath: /x, fsType: xfs}]}\n",
           "at least 300Mi, which xfs needs");
    refuse(HEAD "spec: {volumes: [{name: a, size: 64Mi, mountPath: /x, fsType: btrfs}]}\n",
           "at least 128Mi, which btrfs needs");
    refuse(HEAD "spec: {export: nbd, volumes: [{name: a, size: 1Gi, mountPath: /x}]}\n",
           "spec.volumes[0].mountPath: not allowed with export nbd");
    refuse(HEAD "spec: {export: smb, volumes: []}\n",
           "f.yaml:4:16: spec.export: found 'smb'; expected fuse, ublk or nbd");
}

static void each_export_is_known(void **unused)
{
    (void)unused;
    static const char *const names[] = {[APP_EXPORT_FUSE] = "fuse", [APP_EXPORT_NBD] = "nbd", [APP_EXPORT_UBLK] = "ublk"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char text[256];
        snprintf(text, sizeof text, HEAD "spec: {export: %s, volumes: [{name: a, size: 1Gi%s}]}\n", names[i],
                 i == APP_EXPORT_NBD ? "" : ", mountPath: /a");
        _cleanup_app_documents_ struct app_documents *d = parse(text);
        assert_int_equal(d->items[0].spec->export, i);
        _cleanup_free_ char *canonical_text = app_spec_to_yaml(d->items[0].spec);
        _cleanup_app_documents_ struct app_documents *again = parse(canonical_text);
        assert_int_equal(again->items[0].spec->export, i);
        assert_true(app_export_has_devices(i) == (i != APP_EXPORT_NBD)); /* what can be mounted must be unmounted */
    }
}

static void others(void **unused)
{
    (void)unused;
#define ONE "volumes: [{name: a, size: 1Gi, mountPath: /srv/a}]"
    refuse(HEAD "spec: {" ONE ", manifests: ./m}\n", "it is not known where a relative one starts");
    refuse(HEAD "spec: {" ONE ", manifests: /srv/a/m}\n",
           "expected a directory outside the application's volumes");
    refuse(HEAD "spec: {" ONE ", policyRef: gold}\n", "spec.policyRef: found 'gold'; expected a mapping");
    refuse(HEAD "spec: {" ONE ", lifecycle: {stpo: x}}\n",
           "spec.lifecycle.stpo: unknown field; did you mean 'stop'?");
    refuse(HEAD "spec: {" ONE ", lifecycle: {stop: {a: b}}}\n",
           "spec.lifecycle.stop: found a mapping; expected a list of words");
    refuse(HEAD "spec: {" ONE ", lifecycle: {stop: [[a], b]}}\n",
           "spec.lifecycle.stop[1]: found 'b'; expected a command as a list");
    refuse(HEAD "spec: {" ONE ", lifecycle: {stop: [a, [b]]}}\n",
           "spec.lifecycle.stop[1]: found a list; expected a word");
    refuse(HEAD "spec: {" ONE ", lifecycle: {stop: ['']}}\n", "expected a program");
    refuse(HEAD "spec: {" ONE ", lifecycle: {stop: [a, ~]}}\n", "put quotes around an empty one");
    refuse(HEAD "spec: {" ONE ", lifecycle: {stop: ''}}\n", "found ''; expected a command");
    refuse(HEAD "spec: {" ONE ", colour: red}\n",
           "spec.colour: unknown field; expected one of: policyRef, export, volumes");
}

static void encryption(void **unused)
{
    (void)unused;
    _cleanup_app_documents_ struct app_documents *d =
        parse(HEAD "spec:\n  " ONE "\n  journal: {encryption: {keyFile: ../keys//shop.key}}\n");
    assert_string_equal(d->items[0].spec->key_file, "/keys/shop.key");
    _cleanup_free_ char *text = app_spec_to_yaml(d->items[0].spec);
    assert_non_null(strstr(text, "  journal:\n    encryption:\n      keyFile: /keys/shop.key\n"));
    _cleanup_app_documents_ struct app_documents *again = parse(text);
    assert_string_equal(again->items[0].spec->key_file, "/keys/shop.key");
    _cleanup_app_documents_ struct app_documents *plain = parse(HEAD "spec: {" ONE ", journal: {}}\n");
    assert_null(plain->items[0].spec->key_file);
    _cleanup_app_documents_ struct app_documents *beside =
        parse(HEAD "spec: {" ONE ", journal: {encryption: {keyFile: /srv/a.key}}}\n"); /* no directory of the same name */
    assert_string_equal(beside->items[0].spec->key_file, "/srv/a.key");
#define KEY(value) HEAD "spec: {" ONE ", journal: {encryption: {keyFile: " value "}}}\n"
    refuse(HEAD "spec: {" ONE ", journal: {encryption: {}}}\n", "spec.journal.encryption.keyFile: missing");
    refuse(HEAD "spec: {" ONE ", journal: {encryption: yes}}\n", "spec.journal.encryption: found 'yes'; expected a mapping");
    refuse(HEAD "spec: {" ONE ", journal: {encryption: {keyfile: /k}}}\n", "did you mean 'keyFile'?");
    refuse(HEAD "spec: {" ONE ", journal: {quota: 1Gi}}\n", "spec.journal.quota: unknown field");
    refuse(KEY("''"), "spec.journal.encryption.keyFile: found ''; expected a path");
    refuse(KEY("~"), "spec.journal.encryption.keyFile: found nothing; expected the path of a key file");
    refuse(KEY("[/k]"), "spec.journal.encryption.keyFile: found a list; expected a path");
    refuse(KEY("k"), "it is not known where a relative one starts");
    refuse(KEY("/x/.."), "expected a directory other than /");
    refuse(KEY("\"/k\\n\""), "without control characters");
    refuse(KEY("/srv/a/../a/keys/k"), "a file outside the application's volumes");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(whole),    cmocka_unit_test(sources), cmocka_unit_test(from), cmocka_unit_test(canonical),
                                       cmocka_unit_test(checksums), cmocka_unit_test(policies), cmocka_unit_test(retention), cmocka_unit_test(compression), cmocka_unit_test(wrong_retention), cmocka_unit_test(envelope),
                                       cmocka_unit_test(volumes),  cmocka_unit_test(each_export_is_known), cmocka_unit_test(others), cmocka_unit_test(encryption)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
