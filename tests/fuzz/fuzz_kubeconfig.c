/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever the kubeconfig, and whatever an exec plugin prints: a configuration with a server, or an error
 * with a message. */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "kube/kube_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_INIT;
    struct kube_config config;
    struct kube_secrets_copy secrets;
    uint64_t expiry;
    if (kube_config_parse("/kube/config", (const char *)data, size, NULL, &config, &err) == 0) {
        assert(strncmp(config.server, "http", 4) == 0 && config.namespace);
        kube_config_release(&config);
    } else {
        assert(err.code < 0 && *err.message);
    }
    err = ERROR_INIT;
    if (kube_credentials_parse("plugin", (const char *)data, size, &secrets, &expiry, &err) == 0) {
        assert(secrets.token || (secrets.certificate.data && secrets.key.data));
        kube_secrets_release(&secrets);
    } else {
        assert(err.code < 0 && *err.message);
    }
    return 0;
}
