/* SPDX-License-Identifier: Apache-2.0 */
/* The classes of contents, whatever the length of what is written and however long the tail of zeroes is. */
#include "content.h"
#include "signal/estimate.h"

#define ROUNDS 20000

static void (*const structured[])(unsigned char *, size_t, uint64_t *) = {content_text, content_table, content_base64};

static enum signal_class class_of(const void *data, size_t bytes)
{
    struct signal_estimate e;
    signal_estimate(data, bytes, &e);
    return e.class;
}

static void kinds(void **unused)
{
    (void)unused;
    uint64_t state = check_seed();
    unsigned char block[SIGNAL_BLOCK_BYTES];
    unsigned missed = 0;
    for (int i = 0; i < ROUNDS; i++) {
        size_t bytes = 512 * (1 + check_random(&state) % 8);
        content_cipher(block, bytes, &state);
        missed += class_of(block, bytes) != SIGNAL_CLASS_HIGH;
        structured[i % 3](block, bytes, &state);
        assert_int_equal(class_of(block, bytes), SIGNAL_CLASS_LOW);
    }
    assert_true(missed < ROUNDS / 500); /* 5 standard deviations, of a distribution that is a little skewed */
    memset(block, 0, sizeof block);
    assert_int_equal(class_of(block, sizeof block), SIGNAL_CLASS_FREE);
    memset(block, 'x', sizeof block);
    assert_int_equal(class_of(block, sizeof block), SIGNAL_CLASS_LOW);
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = (unsigned char)(i / 16 * 37); /* runs */
    assert_int_equal(class_of(block, sizeof block), SIGNAL_CLASS_LOW);
}

/* A short file's last block: ciphertext, then zeroes. */
static void tails(void **unused)
{
    (void)unused;
    uint64_t state = 7;
    unsigned char block[SIGNAL_BLOCK_BYTES];
    unsigned missed = 0, rounds = 0;
    for (size_t length = 1100; length < SIGNAL_BLOCK_BYTES; length += 3, rounds++) {
        memset(block, 0, sizeof block);
        content_cipher(block, length, &state);
        missed += class_of(block, sizeof block) != SIGNAL_CLASS_HIGH;
        memset(block, 0, sizeof block);
        content_text(block, length, &state);
        assert_int_equal(class_of(block, sizeof block), SIGNAL_CLASS_LOW);
    }
    assert_true(missed < rounds / 8); /* where the end falls into a sampled chunk */
}

static void evenness(void **unused)
{
    (void)unused;
    uint64_t state = 11;
    unsigned char block[SIGNAL_BLOCK_BYTES];
    uint32_t counts[2][SIGNAL_ALPHABET] = {0};
    uint64_t samples[2] = {0};
    for (int i = 0; i < 1024; i++) {
        for (int kind = 0; kind < 2; kind++) {
            struct signal_estimate e;
            (kind ? content_compressed : content_cipher)(block, sizeof block, &state);
            signal_estimate(block, sizeof block, &e);
            assert_int_equal(e.class, SIGNAL_CLASS_HIGH);
            for (size_t k = 0; k < SIGNAL_ALPHABET; k++)
                counts[kind][k] += e.counts[k];
            samples[kind] += e.samples;
        }
    }
    double cipher = signal_chi_square(counts[0], samples[0]), compressed = signal_chi_square(counts[1], samples[1]);
    assert_true(cipher > 150 && cipher < 391);
    assert_true(compressed > 391);
    assert_true(signal_chi_square(counts[0], 0) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(kinds), cmocka_unit_test(tails), cmocka_unit_test(evenness)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
