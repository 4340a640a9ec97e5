classdef VolumeSource
  properties
    Source
  end
  methods
    function self = VolumeSource(source)
      if ~iscell(source) || size(source, 2) ~= 1 || ~all(cellfun(@iscellstr, source))
        error('stub:VolumeSource', 'a volume source takes a column of cells with file names');
      end
      files = vertcat(source{:});
      if ~all(cellfun(@isfile, files))
        error('stub:VolumeSource', 'a file is not there');
      end
      self.Source = source;
    end
  end
end
