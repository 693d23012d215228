/* SPDX-License-Identifier: Apache-2.0 */
/* Whether Tidemark can be taken out of the cluster: not while claims use its volumes, which nothing could
 * mount any more. The chart asks before it is uninstalled. */
#include <string.h>

#include "cli/kubectl_internal.h"

#define CSI_DRIVER "csi.tidemark.io"
#define SHOWN_MAX 10u

/* The claims that are bound to volumes of ours: [{"namespace", "claim", "volume", "adopted"}]. */
static json_t *claims_in_use(const json_t *volumes)
{
    json_t *found = json_array(), *volume;
    size_t i;
    json_array_foreach(volumes, i, volume)
    {
        const json_t *claim = kubectl_at(volume, "spec", "claimRef");
        const char *phase = cli_field_text(json_object_get(volume, "status"), "phase", "");
        if (strcmp(cli_field_text(kubectl_at(volume, "spec", "csi"), "driver", ""), CSI_DRIVER) != 0 ||
            !claim || strcmp(phase, "Bound") != 0)
            continue;
        json_array_append_new(
            found, json_pack("{s:s, s:s, s:s}", "namespace", cli_field_text(claim, "namespace", "?"), "claim",
                             cli_field_text(claim, "name", "?"), "volume", kube_object_name(volume)));
    }
    return found;
}

static enum cli_exit refuse(const struct cli *cli, const json_t *claims)
{
    char names[CLI_TEXT_BYTES * 4] = "";
    size_t i, length = 0, count = json_array_size(claims);
    json_t *one;
    json_array_foreach(claims, i, one)
    {
        if (i < SHOWN_MAX && length < sizeof names)
            length +=
                (size_t)snprintf(names + length, sizeof names - length, "%s%.63s/%.100s", i ? ", " : "",
                                 cli_field_text(one, "namespace", "?"), cli_field_text(one, "claim", "?"));
    }
    return cli_output_fail(
        cli, CLI_EXIT_REFUSED,
        "`kubectl tidemark release NAMESPACE/CLAIM` gives a claim a volume without Tidemark, adopted or not; "
        "or "
        "delete the claim. `helm rollback tidemark REVISION`, of the revision that `helm history tidemark` "
        "shows last, keeps "
        "Tidemark, which a refused uninstall leaves half-way; "
        "`helm uninstall --no-hooks` (or the value uninstall.force) goes all the same: nothing can mount "
        "these "
        "volumes then, until it is installed again",
        "uninstall-check: %zu claim%s volumes of Tidemark, which nothing could mount without it: %s%s", count,
        count == 1 ? " uses" : "s use", names, count > SHOWN_MAX ? " ..." : "");
}

static enum cli_exit run(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k;
    _cleanup_json_ json_t *volumes = NULL, *claims = NULL;
    struct error err = ERROR_INIT;
    enum cli_exit code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    if (kubectl_list(&k, &kube_volumes, NULL, &volumes, &err) < 0)
        return kubectl_fail(&k, "uninstall-check", &err);
    claims = claims_in_use(volumes);
    if (cli->format != CLI_FORMAT_TABLE)
        code = cli_output_value(cli, claims);
    if (code == CLI_EXIT_OK && json_array_size(claims) > 0)
        return refuse(cli, claims);
    if (code == CLI_EXIT_OK && cli->format == CLI_FORMAT_TABLE)
        cli_output_say(cli, "no claim uses volumes of Tidemark: it can be uninstalled");
    return code;
}

const struct cli_command kubectl_uninstall_check = {
    .name = "uninstall-check",
    .summary = "whether Tidemark can be uninstalled, and what is in the way",
    .description =
        "Names the claims that use volumes of Tidemark, adopted ones among them: without it nothing\n"
        "can mount them. The chart asks the same before `helm uninstall`, which is refused then.\n"
        "Exit status 4 while there are any. Needs the right to list PersistentVolumes.",
    .formats = true,
    .examples = (const char *const[]){"kubectl tidemark uninstall-check",
                                      "kubectl tidemark uninstall-check -o json | jq -r '.[].claim'", NULL},
    .run = run,
};
