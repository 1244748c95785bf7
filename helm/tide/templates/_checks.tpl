{{/* Checks that values.schema.json cannot express. */}}
{{- define "tide.checks" -}}
{{- if and .Values.ray.faultTolerance.enabled (not .Values.ray.faultTolerance.redisAddress) -}}
{{- fail "ray.faultTolerance.enabled needs ray.faultTolerance.redisAddress (redis://host:6379)" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs: the gateway of the route" -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (or .Values.ingress.enabled .Values.httpRoute.enabled) (not .Values.networkPolicy.clients) -}}
{{- fail "an ingress or route needs networkPolicy.clients: the pods or namespace of the ingress controller; without them no client can connect" -}}
{{- end -}}
{{- $groups := 0 -}}
{{- $purposes := dict -}}
{{- range $name, $group := .Values.ray.workerGroups -}}
{{- if $group.enabled -}}
{{- $groups = add1 $groups -}}
{{- $_ := set $purposes $group.purpose true -}}
{{- if gt (int $group.minReplicas) (int $group.maxReplicas) -}}
{{- fail (printf "ray.workerGroups.%s: minReplicas is above maxReplicas" $name) -}}
{{- end -}}
{{- if and (gt (int $group.gpus) 0) (eq $group.image "cpu") -}}
{{- fail (printf "ray.workerGroups.%s has GPUs and an image without CUDA: set image: cuda" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not $groups -}}
{{- fail "enable at least one of ray.workerGroups: the head runs no tasks or actors" -}}
{{- end -}}
{{- if .Values.ray.placeByPurpose -}}
{{- range tuple "preparation" "trainer" "teacher" -}}
{{- if not (hasKey $purposes .) -}}
{{- fail (printf "ray.placeByPurpose needs an enabled group of ray.workerGroups with purpose: %s; without it such work never starts" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
