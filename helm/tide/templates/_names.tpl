{{- define "tide.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that never change between versions, since selectors are immutable. Argument: dict root component */}}
{{- define "tide.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "tide.labels" -}}
{{ include "tide.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Argument: dict root image */}}
{{- define "tide.image" -}}
{{- if .image.digest -}}
{{ printf "%s@%s" .image.repository .image.digest }}
{{- else -}}
{{ printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) }}
{{- end -}}
{{- end -}}

{{- define "tide.rayTokenSecret" -}}
{{- default (include "tide.fullname" .) .Values.ray.tokenAuthentication.secretName -}}
{{- end -}}

{{- define "tide.storageClaim" -}}
{{- default (printf "%s-storage" (include "tide.fullname" .)) .Values.storage.claim.existingName -}}
{{- end -}}

{{- define "tide.modelCacheClaim" -}}
{{- default (printf "%s-models" (include "tide.fullname" .)) .Values.modelCache.existingName -}}
{{- end -}}

{{- define "tide.databaseUrl" -}}
- name: TIDE_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.secretName }}
      key: {{ .Values.database.urlKey }}
{{- end -}}
