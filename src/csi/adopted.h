/* SPDX-License-Identifier: Apache-2.0 */
/* A volume of backing class over a volume of another driver that exists already, as it is (adr/0025). What is there beside the claim's own volume, the
 * former one, which is kept with Retain:
 *
 *   PersistentVolume <handle>-backing   the same volume of the other driver, as a raw device
 *   claim <handle>                      bound to that, in the driver's namespace: as that of any volume of backing class (csi/class.h)
 *   the volume's record                 likewise
 *   PersistentVolume <handle>           csi.tidemark.io; volumeAttributes.adopted is "true": no file system is ever made on it
 *
 * The functions here only compute; cli/kubectl_carry.c does it.
 *
 * Threads: thread-safe. */
#ifndef TIDEMARK_CSI_ADOPTED_H
#define TIDEMARK_CSI_ADOPTED_H

#include <jansson.h>

#include "csi/class.h"
#include "csi/records.h"

#define ADOPTED_ATTRIBUTE "adopted" /* of volumeAttributes, and so of volume_context */
#define ADOPTED_TYPE_BYTES 32
#define ADOPTED_DEVICE "/dev/tidemark/volume" /* in the pod that looks */

void adopted_backing_name(const char *handle, char ret[CLASS_NAME_BYTES]);
void adopted_look_name(const char *handle, char ret[CLASS_NAME_BYTES]);

/* Whether it is worth trying; -EINVAL says why not. `former`: the claim's PersistentVolume. */
int adopted_check(const json_t *former, struct error *err) MUST_CHECK;

/* Objects to be made. NULL when out of memory. */
json_t *adopted_backing_volume(const json_t *former, const char *handle, const char *namespace);
json_t *adopted_backing_claim(const json_t *former, const char *handle, const char *namespace);
/* Bound to the claim that `former` has, once that is made again. `fs_type`: what is on it; "": a raw device. */
json_t *adopted_volume(const json_t *former, const char *handle, const char *fs_type, const char *ack_mode);

/* A pod that has the device and tells, as its termination message, what adopted_read_look reads; it changes nothing there. */
json_t *adopted_look_pod(const char *handle, const char *namespace, const char *image);
/* "BYTES [TYPE]". -EINVAL with the reason why such a volume cannot be taken as it is; `block`: the claim is one of a raw device, and it does not matter
 * what is on it. */
int adopted_read_look(const char *text, bool block, uint64_t *ret_bytes, char ret_type[ADOPTED_TYPE_BYTES], struct error *err) MUST_CHECK;
/* Whether what the kubelet says of a device that it cannot map is the driver's last word. */
bool adopted_is_refusal(const char *message);

/* Whether the devices of a running stream have what its volumes have. `status`: its entry of the data plane's status. */
bool adopted_is_whole(const json_t *status);

/* The record. `parameters`: of the StorageClass of backing class, which says where the journal goes. -EINVAL naming the parameter. */
int adopted_record(const json_t *parameters, const json_t *former, const char *handle, uint64_t size_bytes, struct csi_volume *ret,
                   struct error *err) MUST_CHECK;

#endif
