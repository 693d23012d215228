/* SPDX-License-Identifier: Apache-2.0 */
/* Functions that are never right here; forced into every file by the build. */
#ifndef TIDEMARK_BASE_BANNED_INCLUDE_H
#define TIDEMARK_BASE_BANNED_INCLUDE_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef __cplusplus
#pragma GCC poison strcpy strcat sprintf vsprintf strtok atoi atol atof gets
#endif
#endif
